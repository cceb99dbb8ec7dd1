"""Ask until there is an answer: other servers first, then again after a pause, and an end to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowrl.errors import RewardError, close_match
from rewards.remote.servers import AskError, Backoff, Server, Servers, clock_time
from rewards.remote.wire import PROTOCOL, Answer, Question, WireFormat, pack_question, unpack_answer

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Asker", "Wanted"]

_FINAL = ("request", "permission", "other reward")  # asking again would change nothing
_SHOWN = 3  # events of one server that an error lists

logger = logging.getLogger("flowrl.rewards.remote")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The reward that servers must serve.

    Attributes:
        weights: Its parts, which a server must score, and the client's weights of them.
        needs_groups: Whether it compares samples of a group.
    """

    weights: Mapping[str, float]
    needs_groups: bool

    def require(self, found: Mapping[str, Any], identity: str | None) -> None:
        """Refuse another reward.

        Args:
            found: What a server says of itself.
            identity: Of the reward that has been seen on a server; None if none has.

        Raises:
            AskError: If it is another.
        """
        if found.get("protocol") != PROTOCOL:
            versions = f"it speaks version {found.get('protocol')} of the protocol, this client {PROTOCOL}"
            raise AskError("other reward", f"{versions}; install the same version of flowrl on both sides")
        theirs = found["weights"]
        for name in self.weights:
            if name not in theirs:
                raise AskError("other reward", f"it scores no part {name!r}{close_match(name, theirs)}")
        if bool(found.get("needs_groups")) != self.needs_groups:
            kind = "compares" if found.get("needs_groups") else "does not compare"
            raise AskError("other reward", f"its reward {kind} samples of a group; set needs_groups={bool(found.get('needs_groups'))}")
        if identity is not None and found.get("identity") != identity:
            raise AskError("other reward", f"its {found.get('reward')} is configured in another way than that of the other servers")

    def remarks(self, found: Mapping[str, Any]) -> list[str]:
        """What is worth a warning in what a server says of itself."""
        theirs = found["weights"]
        remarks = [
            f"the server gives part {n!r} the weight {theirs[n]:g}, here it counts {w:g}" for n, w in self.weights.items() if theirs[n] != w
        ]
        return remarks + [f"self-test: {text}" for report in found.get("self_test", ()) for text in report.get("problems", ())]


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Asks one question after another.

    Attributes:
        servers: Who is asked.
        wanted: What they must serve.
        wire: How pictures travel.
        retries: Rounds after the first one; in each, every server is asked until one answers.
        backoff: Pauses between rounds.
        timeout_s: For one answer of one server.
    """

    servers: Servers
    wanted: Wanted
    wire: WireFormat
    retries: int
    backoff: Backoff
    timeout_s: float

    def ask(self, question: Question, asked_since: float) -> Answer:
        """The answer of the first server that gives one.

        Args:
            question: What is asked.
            asked_since: When this call of the reward began, on ``time.monotonic``. No round begins once that, and the last answer of any
                server, lie further back than all pauses and one time-out: many questions do not wait one after another for a dead server.

        Raises:
            RewardError: If none answers; tells what happened on which server.
        """
        story, body = _Story(), pack_question(question, self.wire)
        self._look_after_the_sick()
        for attempt in range(self.retries + 1):
            if attempt and not self._pause(attempt, asked_since):
                break
            for server in self.servers.by_preference():
                if server in story.final:
                    continue
                try:
                    return self._answer(server, body, len(question))
                except AskError as error:
                    self._note(server, error, asked_since)
                    story.add(server, error)
            if len(story.final) == len(list(self.servers)):
                break
        raise RewardError(story.told())

    def verify(self, server: Server) -> Mapping[str, Any]:
        """Trust a server that is ready and serves the right reward; what it says of itself.

        Raises:
            AskError: If it is not, or does not.
        """
        found = self.servers.health(server)
        self.wanted.require(found, self.servers.identity)
        self.servers.identity = found.get("identity")
        self.servers.succeeded(server)
        return found

    def _answer(self, server: Server, body: bytes, rows: int) -> Answer:
        if not server.trusted:
            self.verify(server)
        try:
            answer = unpack_answer(self.servers.score(server, body, self.timeout_s), list(self.wanted.weights), rows)
        except ValueError as error:
            raise AskError("server", str(error)) from error
        self.servers.succeeded(server)
        if self.servers.is_back(server):
            logger.warning("reward server %s is back", server.url)
        return answer

    def _pause(self, attempt: int, asked_since: float) -> bool:
        """Wait before a round; False at once if it is not worth while any more."""
        if time.monotonic() > self._gives_up(asked_since):
            return False
        time.sleep(self.backoff.pause_s(attempt - 1))
        return True

    def _gives_up(self, asked_since: float) -> float:
        """When the last round may begin, on ``time.monotonic``."""
        return max(asked_since, self.servers.last_sign_of_life) + self.backoff.total_s(self.retries) + self.timeout_s

    def _look_after_the_sick(self) -> None:
        """See on other threads whether servers are well again, so that no question waits for one that is not."""
        for server in self.servers.to_look_after():
            threading.Thread(target=self._look_after, args=(server,), name="reward server health", daemon=True).start()

    def _look_after(self, server: Server) -> None:
        try:
            self.verify(server)
        except AskError as error:
            self._note(server, error, time.monotonic())

    def _note(self, server: Server, error: AskError, asked_since: float) -> None:
        """One warning when a server goes down, with the latest time at which this question is given up; the rest is for the curious."""
        logger.debug("reward server %s: %s", server.url, error)
        if not self.servers.failed(server, error):
            return
        if error.fault in _FINAL:
            then = "it is not used"
        elif self.servers.others_work(server):
            then = "others take over"
        elif not self.retries:
            then = "retries is 0, so it is not asked again"
        else:
            until = self._gives_up(asked_since) + self.backoff.longest_pause_s(self.retries)  # the last round begins with a pause
            then = f"asking again, gives up at {clock_time(until)} at the latest"
        logger.warning("reward server %s is down (%s); %s", server.url, error, then)


@dataclass
class _Story:
    """What happened on which server."""

    events: dict[Server, list[str]] = field(default_factory=dict)
    final: set[Server] = field(default_factory=set)

    def add(self, server: Server, error: AskError) -> None:
        self.events.setdefault(server, []).append(str(error))
        if error.fault in _FINAL:
            self.final.add(server)

    def told(self) -> str:
        lines = [f"{server.url} ({_times(len(texts))}): {_distinct(texts)}" for server, texts in self.events.items()]
        return f"no reward server gave scores: {'; '.join(lines)}"


def _times(count: int) -> str:
    return "asked once" if count == 1 else f"asked {count} times"


def _distinct(texts: Iterable[str]) -> str:
    distinct: Sequence[str] = list(dict.fromkeys(texts))
    return ", then ".join(distinct[-_SHOWN:])
