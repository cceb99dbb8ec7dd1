"""The server's pages: ``/health``, ``/score``, ``/known_answers`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from flowrl.errors import RewardError
from rewards.remote.limits import Limits, TooLargeError
from rewards.remote.png import decode_png, png_size
from rewards.remote.wire import CONTENT_TYPE, IDENTITY_HEADER, Question, pack_answer, unpack_question
from rewards.self_test import run_self_tests
from rewards.server.batching import ExpiredError, Job, RewardThread
from rewards.server.names import is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

__all__ = ["RefusedError", "Service", "create_app"]

_T = TypeVar("_T")
_PNG = "image/png"
_RETRY_AFTER_S = 1
_LINGER_S = 1.0  # in which the rest of a refused body is thrown away, so that the asker reads the refusal and not a broken connection


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        """Say which error.

        Args:
            status: Of HTTP.
            detail: What was sent, what is allowed, what to do.
        """
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass(kw_only=True, eq=False)
class Service:
    """What the pages share; one per server.

    Attributes:
        thread: Scores.
        limits: Of a request.
        token: That must come with every request; None asks for none, and then only names of this machine are answered to.
        about: What ``/health`` says of the reward.
        status: ``loading``, ``ready``, ``draining`` or ``failed``.
        under_way: Requests for scores that have no answer yet.
    """

    thread: RewardThread
    limits: Limits
    token: str | None
    about: Mapping[str, Any]
    status: str = "loading"
    under_way: int = 0

    def state(self) -> str:
        """The status, or ``stuck`` where the reward has been busy with one batch for longer than a request may take."""
        stuck = self.status == "ready" and self.thread.busy_s() > self.limits.timeout_s
        return "stuck" if stuck else self.status

    async def health(self, request: Request) -> Response:
        """How the server is; without a token, no more than that."""
        state = self.state()
        content: dict[str, Any] = {"status": state}
        if self.token is None or "authorization" in request.headers:
            self._authorize(request)
            content |= {**self.about, "load": self.thread.load.numbers() | self._now(), "limits": asdict(self.limits)}
        return _json(content, HTTPStatus.OK if state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics(self, request: Request) -> Response:
        """Counters in Prometheus' text format."""
        self._authorize(request)
        return Response(self.thread.load.prometheus(self._now()), media_type="text/plain; version=0.0.4")

    async def known_answers(self, request: Request) -> Response:
        """The reward's self-test, as `rewards.self_test.run_self_tests` reports it."""
        self._authorize(request)
        self._require_ready()
        done = self.thread.call(lambda: run_self_tests(self.thread.reward, device=self.thread.device))
        reports = await _within(asyncio.wrap_future(done), self.limits.timeout_s, "the self-test")
        return _json({"reports": [asdict(report) for report in reports]})

    async def score(self, request: Request) -> Response:
        """Scores of what the body holds, see `rewards.remote.wire`."""
        answer = await self._answer(request)
        self.thread.load.answered(answer.status_code)
        return answer

    async def _answer(self, request: Request) -> Response:
        try:
            with self._place(request):
                return await self._scores(request)
        except RefusedError as refusal:
            if refusal.status != HTTPStatus.REQUEST_TIMEOUT:
                await _throw_away(request, self.limits)
            return _refusal(refusal)

    @contextmanager
    def _place(self, request: Request) -> Iterator[None]:
        """One of the requests that may be under way; who may not ask takes none."""
        self._authorize(request)
        self._require_ready()
        if self.under_way >= self.limits.requests:
            full = f"{self.limits.requests} requests are under way (limits.requests); come again"
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, full)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def _scores(self, request: Request) -> Response:
        deadline = time.monotonic() + self.limits.timeout_s
        question = await self._question(request)
        if question.timeout_s is not None:
            deadline = min(deadline, time.monotonic() + question.timeout_s)
        job = Job(question=question, deadline=deadline)
        self.thread.submit(job)
        waiting = asyncio.ensure_future(_within(asyncio.wrap_future(job.answer), deadline - time.monotonic(), "scoring"))
        gone = asyncio.ensure_future(_gone(request))
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not waiting.done():
            waiting.cancel()
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the asker has gone away")
        headers = {IDENTITY_HEADER: str(self.about["identity"])}
        return Response(pack_answer(await waiting), media_type="application/json", headers=headers)

    async def _question(self, request: Request) -> Question:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (CONTENT_TYPE, _PNG):
            allowed = f"send {CONTENT_TYPE}, or one picture as {_PNG} with ?prompt=…"
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"a body of type {kind!r} cannot be read; {allowed}")
        self.thread.arriving += 1
        try:
            body = await _body(request, self.limits)
            if kind == _PNG:
                return await asyncio.to_thread(_one_picture, body, request.query_params.get("prompt", ""), self.limits)
            return await asyncio.to_thread(unpack_question, body, self.limits)
        except TooLargeError as error:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from error
        finally:
            self.thread.arriving -= 1

    def _authorize(self, request: Request) -> None:
        if self.token is None:
            self._require_local_name(request)
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            what = "is wrong" if given else "is missing"
            raise RefusedError(HTTPStatus.UNAUTHORIZED, f"the token {what}; send the server's own as 'Authorization: Bearer …'")

    def _require_local_name(self, request: Request) -> None:
        """Without a token, refuse requests that a web page sends here under a foreign name."""
        name = request.url.hostname or ""
        if not is_loopback(name):
            raise RefusedError(HTTPStatus.FORBIDDEN, f"this server answers to localhost only, not to {name!r}; start it with a token")

    def _require_ready(self) -> None:
        if (state := self.state()) != "ready":
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"the server is {state}; come again")

    def _now(self) -> dict[str, float]:
        return {"requests_under_way": self.under_way, "rows_waiting": self.thread.waiting, "busy_s": round(self.thread.busy_s(), 3)}


def create_app(service: Service) -> FastAPI:
    """The pages as an application; none of them lists the others."""
    app = FastAPI(title="flowrl reward server", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/metrics", service.metrics, methods=["GET"])
    app.add_api_route("/known_answers", service.known_answers, methods=["GET"])
    app.add_api_route("/score", service.score, methods=["POST"])

    async def refuse(_: Request, error: Exception) -> Response:
        return _refusal(error) if isinstance(error, RefusedError) else _json({"detail": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)

    app.add_exception_handler(RefusedError, refuse)
    return app


async def _within(work: Awaitable[_T], seconds: float, what: str) -> _T:
    """Wait for the reward thread, and turn what it raises into an answer."""
    try:
        return await asyncio.wait_for(work, max(seconds, 0.0))
    except (TimeoutError, ExpiredError) as error:
        late = f"{what} took longer than it may (limits.timeout_s, or the asker's own)" if isinstance(error, TimeoutError) else str(error)
        raise RefusedError(HTTPStatus.GATEWAY_TIMEOUT, late) from error
    except RewardError as error:
        raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from error
    except Exception as error:
        raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}") from error


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, given up as soon as it is known to be too large or too slow."""
    announced = request.headers.get("content-length", "0")
    limits.check_body(int(announced) if announced.isdecimal() else 0)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.receive_s):
            async for chunk in request.stream():
                body += chunk
                limits.check_body(len(body))
    except TimeoutError as error:
        late = f"only {len(body)} bytes of the body came in {limits.receive_s:g} s (limits.receive_s)"
        raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, late) from error
    except ClientDisconnect as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the asker has gone away") from error
    return bytes(body)


async def _throw_away(request: Request, limits: Limits) -> None:
    """Read the rest of a refused body for a moment."""
    left = limits.body_bytes
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(_LINGER_S):
            async for chunk in request.stream():
                left -= len(chunk)
                if left < 0:
                    return


async def _gone(request: Request) -> None:
    """Return when the asker has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _one_picture(body: bytes, prompt: str, limits: Limits) -> Question:
    import torch

    limits.check_pictures([png_size(body)])
    return Question(samples=decode_png(body)[None].float() / 255, prompts=[prompt], groups=torch.zeros(1, dtype=torch.long))


def _refusal(refusal: RefusedError) -> Response:
    answer = _json({"detail": refusal.detail}, refusal.status)
    if refusal.status == HTTPStatus.SERVICE_UNAVAILABLE:
        answer.headers["retry-after"] = str(_RETRY_AFTER_S)
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        answer.headers["www-authenticate"] = "Bearer"
    return answer


def _json(content: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(json.dumps(_without_nan(content)), status_code=status, media_type="application/json")


def _without_nan(value: Any) -> Any:
    """The same with null for numbers that JSON cannot say."""
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:  # noqa: PLR0124 - NaN differs from itself
        return value
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) else value
