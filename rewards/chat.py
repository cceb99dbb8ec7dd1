"""Questions about pictures to a vision-language model behind an OpenAI-compatible endpoint (vLLM, SGLang, Ollama, a hosted service).

Only the chat-completions format is used: pictures travel inside the question as PNG data URLs, and nothing is stored.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from flowrl.errors import RewardError
from rewards.chat_wire import Health, Question, Unanswered, completion, message, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

__all__ = ["Answer", "ChatEndpoint", "Question"]

_Value = TypeVar("_Value")
_JITTER = random.Random()  # a stream of its own: retries leave the run's random numbers alone
_SHOWN = 200  # characters of an answer in a message

logger = logging.getLogger("flowrl.rewards.chat")


@dataclass(frozen=True, kw_only=True)
class Answer(Generic[_Value]):
    """What came of a question.

    Attributes:
        value: What was read from the answer, or None.
        problem: Why there is no value, or empty.
    """

    value: _Value | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class ChatEndpoint:
    """Where a model answers, and how patiently it is asked.

    Attributes:
        model: Its name there, such as ``CodeGoat24/UnifiedReward-qwen-7b``.
        url: Up to and with ``/v1``.
        key_env: Environment variable that holds the key; none is sent where it is not set. A key never stands in a config.
        requests: Under way at once.
        max_tokens: Of an answer; None leaves it to the server.
        temperature: 0 for the most probable answer; None leaves it to the server.
        extra: Further keys of the request's body.
        timeout_s: For one answer.
        retries: After a failed connection, a rate limit (429) or a fault of the server (5xx).
        backoff_s: The first pause, doubled every time, up to half of it left out at random; ``Retry-After`` of the server goes first.
        max_backoff_s: That no pause exceeds.
        readings: How often a question is asked until its answer can be read.

    Raises:
        ValueError: If the address is none or a number is out of range.
    """

    model: str
    url: str = "http://127.0.0.1:8000/v1"
    key_env: str = "OPENAI_API_KEY"
    requests: int = 8
    max_tokens: int | None = 1024
    temperature: float | None = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 120.0
    retries: int = 5
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    readings: int = 2

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in {"http", "https"} or not urlsplit(self.url).hostname:
            raise ValueError(f"url must be an address such as http://127.0.0.1:8000/v1, got {self.url!r}")
        for name in ("requests", "readings", "timeout_s", "max_backoff_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.retries < 0 or not self.backoff_s >= 0:
            raise ValueError(f"retries and backoff_s must be >= 0, got {self.retries} and {self.backoff_s}")

    def check(self) -> None:
        """Make sure that the endpoint answers and has the model; one without a list of models is taken at its word.

        Raises:
            RewardError: If it does not.
        """
        import httpx

        try:
            with self._client() as client:
                reply = client.get("models")
        except httpx.HTTPError as error:
            raise RewardError(f"{self.url} does not answer ({error}); is the model served there?") from error
        if reply.status_code in (401, 403):
            raise RewardError(f"{self.url} refuses the key in ${self.key_env}: {reason_of(reply)}")
        try:
            names = [entry["id"] for entry in reply.json()["data"]] if reply.is_success else []
        except (ValueError, KeyError, TypeError):
            names = []
        if names and self.model not in names:
            raise RewardError(f"{self.url} has no model {self.model!r}; it has {', '.join(map(str, names))}")

    def ask(self, questions: Sequence[Question], read: Callable[[str], _Value | None]) -> Callable[[], list[Answer[_Value]]]:
        """Start asking; what comes back waits for the answers, in the order of the questions.

        Args:
            questions: Any number.
            read: Gives what an answer says, or None if it cannot be read.

        Raises:
            RewardError: When waited for: if the key is refused, there is no such model, or not a single question was answered.
        """
        client, health = self._client(), Health(self.requests)

        def answer(question: Question) -> Answer[_Value]:
            return self._answer(client, health, question, read)

        pending = _in_threads(answer, questions, self.requests)

        def wait() -> list[Answer[_Value]]:
            try:
                answers = [future.result() for future in pending]
            finally:
                for future in pending:
                    future.cancel()
                client.close()
            failed = [one.problem for one in answers if one.problem]
            if failed and len(failed) == len(answers):
                raise RewardError(f"{self.model} at {self.url} answered none of {len(answers)} questions: {failed[0]}")
            if failed:
                logger.warning("%s left %d of %d questions without an answer: %s", self.model, len(failed), len(answers), failed[0])
            return answers

        return wait

    def _client(self) -> httpx.Client:
        import httpx

        key, host = os.environ.get(self.key_env), urlsplit(self.url).hostname
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        proxies = host not in {"127.0.0.1", "localhost", "::1"}  # a proxy of the environment does not reach this machine
        return httpx.Client(base_url=self.url.rstrip("/") + "/", headers=headers, timeout=self.timeout_s, trust_env=proxies)

    def _answer(self, client: httpx.Client, health: Health, question: Question, read: Callable[[str], _Value | None]) -> Answer[_Value]:
        body = {"model": self.model, "messages": [message(question)]} | dict(self.extra)
        body |= {name: value for name in ("max_tokens", "temperature") if (value := getattr(self, name)) is not None and name not in body}
        problem = ""
        for _ in range(self.readings):
            try:
                text = self._patiently(client, health, body)
            except Unanswered as error:
                return Answer(problem=str(error))
            except RewardError as error:
                raise RewardError(f"{error}; the key is read from ${self.key_env}") from error
            if (value := read(text)) is not None:
                return Answer(value=value)
            problem = f"its answer cannot be read: {text[-_SHOWN:]!r}"
        return Answer(problem=problem)

    def _patiently(self, client: httpx.Client, health: Health, body: Mapping[str, Any]) -> str:
        """The text of an answer, after as many tries as are allowed."""
        for attempt in range(self.retries + 1):
            if health.gone:
                raise Unanswered(f"not asked any more: {health.reason}", again=False)
            try:
                text = completion(client, body)
            except Unanswered as error:
                if not error.again or attempt == self.retries:
                    if error.again:
                        health.failed(str(error))
                    raise
                pause = error.wait_s or self.backoff_s * 2**attempt * _JITTER.uniform(0.5, 1)
                time.sleep(min(pause, self.max_backoff_s))
            else:
                health.answered()
                return text
        raise Unanswered("no tries are left", again=False)


def _in_threads(work: Callable[[Question], Answer[_Value]], questions: Sequence[Question], threads: int) -> list[Future[Answer[_Value]]]:
    """Answer questions in threads that do not keep a process from ending."""
    waiting: queue.SimpleQueue[tuple[Future[Answer[_Value]], Question]] = queue.SimpleQueue()
    pending = [Future[Answer[_Value]]() for _ in questions]
    for item in zip(pending, questions, strict=True):
        waiting.put(item)

    def worker() -> None:
        while True:
            try:
                future, question = waiting.get_nowait()
            except queue.Empty:
                return
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(question))
                except BaseException as error:
                    future.set_exception(error)

    for _ in range(min(threads, len(questions))):
        threading.Thread(target=worker, name="flowrl-chat", daemon=True).start()
    return pending
