"""The servers of one reward: which is asked next, which rests after a failure, and how one is spoken to."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import httpx

from rewards.remote.wire import CONTENT_TYPE, IDENTITY_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AskError", "Backoff", "Server", "Servers", "clock_time"]

_MAX_ANSWER = 64 * 2**20  # bytes; scores of a request are kilobytes
_HEALTH_TIMEOUT_S = 10.0
_NO_SERVER = "its answer is not a flowrl reward server's"
_MOST_DOUBLINGS = 60
_SHOWN = 500  # characters of a server's own words

Fault = Literal["server", "busy", "request", "permission", "other reward"]


class AskError(Exception):
    """A server gave no answer that can be used.

    Attributes:
        fault: Whose it is: the ``server`` is gone, broken or slow; it is ``busy``; the ``request`` is refused and would be again;
            ``permission`` is missing; or it serves the ``other reward``.
    """

    def __init__(self, fault: Fault, text: str) -> None:
        """Say what happened.

        Args:
            fault: Whose it is.
            text: What happened.
        """
        super().__init__(text)
        self.fault = fault


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Pauses that double, up to a longest one, and are not the same for all who failed together.

    Attributes:
        first_s: The longest that the first pause can be, in seconds; the shortest is half of it.
        longest_s: That none exceeds.
    """

    first_s: float
    longest_s: float

    def pause_s(self, doublings: int) -> float:
        """Seconds until the next try, after so many doublings."""
        jitter = int.from_bytes(os.urandom(4), "big") / 2**32  # no generator of the training is touched
        return self._full_s(doublings) * (0.5 + 0.5 * jitter)

    def total_s(self, pauses: int) -> float:
        """The longest that so many pauses in a row can take."""
        return sum(self._full_s(doublings) for doublings in range(pauses))

    def longest_pause_s(self, pauses: int) -> float:
        """The longest that any of so many pauses can take."""
        return self._full_s(max(pauses - 1, 0))

    def _full_s(self, doublings: int) -> float:
        return min(self.first_s * 2.0 ** min(doublings, _MOST_DOUBLINGS), self.longest_s)


def clock_time(moment: float) -> str:
    """The wall clock's time at a moment of ``time.monotonic``."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() + moment - time.monotonic()))


@dataclass(eq=False)
class Server:
    """One server as this process knows it.

    Attributes:
        url: Its address.
        trusted: Whether it has been found healthy and of the right reward since its last failure.
        failures: In a row.
        down: Whether it is known, and has been said, to be of no use; until it gives scores again.
        rests_until: On ``time.monotonic``; until then it is asked only if all others fail.
        under_way: Requests that it has not answered.
    """

    url: str
    trusted: bool = False
    failures: int = 0
    down: bool = False
    rests_until: float = 0.0
    under_way: int = 0


class Servers:
    """All servers of one reward; safe to use from several threads of the process that made it."""

    def __init__(self, urls: tuple[str, ...], *, token: str | None, connect_timeout_s: float, backoff: Backoff, slots: int) -> None:
        """Speak to nobody yet.

        Args:
            urls: Their addresses.
            token: Sent with every request.
            connect_timeout_s: For a connection.
            backoff: How long a server rests after a failure.
            slots: Requests under way at once, over all servers.
        """
        self._servers = [Server(url) for url in urls]
        self._lock = threading.Lock()
        self._backoff, self._connect_timeout_s = backoff, connect_timeout_s
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        # No proxy from the environment: a reward server is this machine or a neighbour.
        self._http = httpx.Client(headers=headers, trust_env=False, verify=ssl.create_default_context())
        weakref.finalize(self, self._http.close)
        self.slots = threading.BoundedSemaphore(slots)
        self.identity: str | None = None
        self.last_sign_of_life = time.monotonic()

    def __iter__(self) -> Iterator[Server]:
        """All of them, in the given order."""
        return iter(self._servers)

    def by_preference(self) -> list[Server]:
        """Trusted and rested ones first, of those the one with the fewest requests under way."""
        now = time.monotonic()
        with self._lock:
            return sorted(self._servers, key=lambda s: (not s.trusted, max(s.rests_until - now, 0.0), s.under_way))

    def to_look_after(self) -> list[Server]:
        """Servers that have rested and may be well again, while others do their work; each is named once a rest."""
        now = time.monotonic()
        with self._lock:
            due = [s for s in self._servers if not s.trusted and s.rests_until <= now] if any(s.trusted for s in self._servers) else []
            for server in due:
                server.rests_until = now + _HEALTH_TIMEOUT_S
            return due

    def health(self, server: Server) -> dict[str, Any]:
        """What a server says of itself.

        Raises:
            AskError: If it is not ready.
        """
        found = _object(self._exchange("GET", f"{server.url}/health", timeout_s=_HEALTH_TIMEOUT_S))
        if not isinstance(found.get("weights"), dict):
            known = "status" in found
            raise AskError("permission", "it tells more than its status only for its token") if known else AskError("server", _NO_SERVER)
        return found

    def self_test(self, server: Server, timeout_s: float) -> dict[str, Any]:
        """How a server's reward scores its known answers.

        Raises:
            AskError: If it does not say.
        """
        return _object(self._exchange("GET", f"{server.url}/known_answers", timeout_s=timeout_s))

    def score(self, server: Server, body: bytes, timeout_s: float) -> bytes:
        """What a server answers to a question.

        Raises:
            AskError: If it does not.
        """
        with self._lock:
            server.under_way += 1
        try:
            return self._exchange("POST", f"{server.url}/score", timeout_s=timeout_s, body=body, identity=self.identity)
        finally:
            with self._lock:
                server.under_way -= 1

    def succeeded(self, server: Server) -> None:
        """Trust a server again."""
        with self._lock:
            self.last_sign_of_life = time.monotonic()
            server.failures, server.rests_until, server.trusted = 0, 0.0, True

    def is_back(self, server: Server) -> bool:
        """Note that a server is of use; whether it was down before."""
        with self._lock:
            was_down, server.down = server.down, False
        return was_down

    def failed(self, server: Server, error: AskError) -> bool:
        """Let a server rest, unless the request is to blame; one that is only busy keeps its good name. Whether it is down since now."""
        if error.fault == "request":
            return False
        with self._lock:
            server.failures += 1
            server.trusted = server.trusted and error.fault == "busy"
            server.rests_until = time.monotonic() + self._backoff.pause_s(server.failures - 1)
            was_down, server.down = server.down, server.down or error.fault != "busy"
            return server.down and not was_down

    def others_work(self, server: Server) -> bool:
        """Whether another server is not known to be down."""
        return any(not other.down for other in self._servers if other is not server)

    def _exchange(self, method: str, url: str, *, timeout_s: float, body: bytes | None = None, identity: str | None = None) -> bytes:
        """One request, which ends soon after ``timeout_s``, however slowly the answer trickles in."""
        until = time.monotonic() + timeout_s
        timeout = httpx.Timeout(timeout_s, connect=min(self._connect_timeout_s, timeout_s))
        headers = {} if body is None else {"content-type": CONTENT_TYPE}
        try:
            with self._http.stream(method, url, content=body, headers=headers, timeout=timeout) as response:
                answer = bytearray()
                for chunk in response.iter_bytes():
                    answer += chunk
                    if len(answer) > _MAX_ANSWER:
                        raise AskError("server", f"its answer is longer than {_MAX_ANSWER} bytes")
                    if time.monotonic() > until:
                        raise AskError("server", f"its answer took longer than {timeout_s:g} s")
        except httpx.TimeoutException as error:
            raise AskError("server", f"no answer in time ({type(error).__name__}; timeout_s is {timeout_s:g})") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise AskError("server", f"{type(error).__name__}: {error}") from error
        if response.status_code != httpx.codes.OK:
            raise AskError(_fault(response), f"status {response.status_code}: {_detail(bytes(answer))}")
        if identity is not None and response.headers.get(IDENTITY_HEADER) != identity:
            raise AskError("other reward", "it serves another reward than it did, or than the other servers do")
        return bytes(answer)


def _fault(response: httpx.Response) -> Fault:
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return "permission"
    if "retry-after" in response.headers or response.status_code == httpx.codes.REQUEST_TIMEOUT:
        return "busy"
    return "server" if response.is_server_error else "request"


def _detail(answer: bytes) -> str:
    """A server's own words, where it has any."""
    try:
        content = json.loads(answer)
        return str(content.get("detail") or content.get("status"))[:_SHOWN]
    except (ValueError, AttributeError, RecursionError):
        return answer[:_SHOWN].decode(errors="replace") or "no words"


def _object(answer: bytes) -> dict[str, Any]:
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise AskError("server", f"{_NO_SERVER} ({error})") from error
    if not isinstance(content, dict):
        raise AskError("server", _NO_SERVER)
    return content
