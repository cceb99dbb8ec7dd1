"""One request to an OpenAI-compatible endpoint: the format, and what each way of failing means."""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowrl.errors import RewardError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

__all__ = ["Health", "Question", "Unanswered", "completion", "message", "reason_of"]

_OK = 200
_FINAL = {401: "refuses the key", 403: "refuses the key", 404: "knows no such model or path"}
_PASSING = {408, 409, 425, 429}  # and all from 500 on: worth asking again
_SERVER_FAULT = 500
_SHOWN = 200  # characters of a server's reason in a message


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one request asks.

    Attributes:
        text: After the pictures.
        pictures: PNG files.
    """

    text: str
    pictures: tuple[bytes, ...]


class Unanswered(Exception):  # noqa: N818 - never leaves the rewards
    """A request without a usable answer.

    Attributes:
        again: Whether asking again may help.
        wait_s: How long the server wants to be left alone; 0 if it does not say.
    """

    def __init__(self, reason: str, *, again: bool, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.again, self.wait_s = again, wait_s


class Health:
    """Gives an endpoint up once several questions in a row have exhausted their tries."""

    def __init__(self, limit: int) -> None:
        self._limit, self._failures, self._lock = limit, 0, threading.Lock()
        self.reason = ""

    @property
    def gone(self) -> bool:
        """Whether nothing is asked any more."""
        return self._failures >= self._limit

    def failed(self, reason: str) -> None:
        """A question has no tries left."""
        with self._lock:
            self._failures, self.reason = self._failures + 1, reason

    def answered(self) -> None:
        """There was an answer."""
        with self._lock:
            self._failures = 0


def message(question: Question) -> dict[str, Any]:
    """A question as the user's message: its pictures as data URLs, then its text."""
    urls = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in question.pictures]
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*content, {"type": "text", "text": question.text}]}


def completion(client: httpx.Client, body: Mapping[str, Any]) -> str:
    """The text of one chat completion.

    Args:
        client: Of the endpoint.
        body: Of the request.

    Raises:
        RewardError: If no question at all can be answered there.
        Unanswered: If this one is not.
    """
    import httpx

    try:
        reply = client.post("chat/completions", json=body)
    except httpx.HTTPError as error:
        raise Unanswered(f"{type(error).__name__}: {error}", again=True) from error
    if reply.status_code in _FINAL:
        raise RewardError(f"{client.base_url} {_FINAL[reply.status_code]} (model {body['model']!r}): {reason_of(reply)}")
    if reply.status_code != _OK:
        again = reply.status_code in _PASSING or reply.status_code >= _SERVER_FAULT
        raise Unanswered(f"status {reply.status_code}: {reason_of(reply)}", again=again, wait_s=_seconds(reply.headers.get("Retry-After")))
    try:
        text = reply.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise Unanswered(f"an answer that is no chat completion: {reason_of(reply)}", again=True) from error
    if not isinstance(text, str) or not text.strip():
        raise Unanswered("an empty answer; are max_tokens used up by reasoning?", again=False)
    return text


def reason_of(reply: httpx.Response) -> str:
    """What a server says is wrong, short."""
    try:
        error = reply.json()["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        text = reply.text
    return text[:_SHOWN].strip() or "no reason given"


def _seconds(header: str | None) -> float:
    """``Retry-After`` in seconds; 0 if there is none, or it is a date."""
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0
