"""A prompt that knows more than its words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Prompt", "facts_of"]


class Prompt(str):
    """A text with facts about it: which picture it edits, which objects a reward shall find.

    It is a ``str`` wherever a text is wanted. Two prompts are the same if text and facts are.

    >>> prompt = Prompt("two red apples", facts={"include": [{"class": "apple", "count": 2}]})
    >>> prompt.upper(), prompt.facts["include"][0]["count"]
    ('TWO RED APPLES', 2)
    """

    __slots__ = ("_key", "facts")

    facts: Mapping[str, Any]
    _key: str

    def __new__(cls, text: str, *, facts: Mapping[str, Any] | None = None) -> Prompt:
        """Join a text and its facts.

        Args:
            text: What the model reads.
            facts: Whatever JSON can say; keys are names.

        Raises:
            ValueError: If the facts cannot be written as JSON.
        """
        prompt = super().__new__(cls, text)
        prompt.facts = dict(facts or {})
        try:
            prompt._key = json.dumps(prompt.facts, sort_keys=True) if prompt.facts else ""
        except TypeError as error:
            raise ValueError(f"the facts of prompt {text!r} must be what JSON can say, got {facts!r} ({error})") from error
        return prompt

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) and self._key == getattr(other, "_key", "") if isinstance(other, str) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((str(self), self._key)) if self._key else str.__hash__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (str(self), dict(self.facts))


def facts_of(prompt: str) -> Mapping[str, Any]:
    """The facts of a prompt; none of a plain text."""
    return prompt.facts if isinstance(prompt, Prompt) else {}


def _rebuilt(text: str, facts: Mapping[str, Any]) -> Prompt:
    return Prompt(text, facts=facts)
