"""A known answer: a few pictures and prompts, and which must score higher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewards.pictures import check_samples

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KnownAnswer"]


@dataclass(frozen=True, kw_only=True)
class KnownAnswer:
    """Rows of which it is known which must score higher.

    Attributes:
        name: What the case shows, for messages.
        pictures: (row, 3, height, width) in [0, 1].
        prompts: One a row; facts (`flowrl.rl.Prompt`) count.
        order: Pairs of rows, the first of which must score higher than the second.
        part: Whose scores; None takes the weighted sum of the parts.
        margin: By how much the first must be higher, in the score's unit; >= 0.
        share: Of the pairs, that must hold: 1 is all. Lower it for learned rewards where a single pair may fail; 0 only looks for
            scores that are missing or all the same.
        hint: What a failure most likely means, appended to the message.

    Raises:
        ValueError: If pictures and prompts do not fit, ``order`` is empty or names a row that is not there, ``margin`` is negative or
            ``share`` lies outside [0, 1].
    """

    name: str
    pictures: Tensor
    prompts: tuple[str, ...]
    order: tuple[tuple[int, int], ...]
    part: str | None = None
    margin: float = 0.0
    share: float = 1.0
    hint: str = ""

    def __post_init__(self) -> None:
        check_samples(self.pictures, self.prompts)
        rows = len(self.prompts)
        if not self.order or any(not (0 <= better < rows and 0 <= worse < rows and better != worse) for better, worse in self.order):
            raise ValueError(f"{self.name}: order must name pairs of the rows 0 to {rows - 1}, got {self.order}")
        if not self.margin >= 0 or not 0 <= self.share <= 1:
            raise ValueError(f"{self.name}: margin must be >= 0 and share in [0, 1], got {self.margin} and {self.share}")

    @staticmethod
    def of_pictures(name: str, pictures: Tensor, prompt: str, **others: Any) -> KnownAnswer:
        """Pictures of one prompt, the best first, each better than the next.

        Args:
            name: What the case shows.
            pictures: (row, 3, height, width), at least two.
            prompt: Of all.
            **others: ``part``, ``margin``, ``share``, ``hint``.
        """
        rows = len(pictures)
        order = tuple((row, row + 1) for row in range(rows - 1))
        return KnownAnswer(name=name, pictures=pictures, prompts=(prompt,) * rows, order=order, **others)

    @staticmethod
    def of_prompts(name: str, picture: Tensor, prompts: Sequence[str], **others: Any) -> KnownAnswer:
        """One picture under several prompts, the one that fits best first, each better than the next.

        Args:
            name: What the case shows.
            picture: (3, height, width).
            prompts: At least two.
            **others: ``part``, ``margin``, ``share``, ``hint``.
        """
        rows = len(prompts)
        order = tuple((row, row + 1) for row in range(rows - 1))
        return KnownAnswer(name=name, pictures=picture.expand(rows, -1, -1, -1), prompts=tuple(prompts), order=order, **others)

    @staticmethod
    def matching(name: str, pictures: Tensor, prompts: Sequence[str], **others: Any) -> KnownAnswer:
        """Every picture under every prompt; picture i and prompt i belong together.

        A picture must score higher under its own prompt than under another's, and a prompt must score its own picture higher than others.

        Args:
            name: What the case shows.
            pictures: (n, 3, height, width), at least two.
            prompts: n texts.
            **others: ``part``, ``margin``, ``share``, ``hint``.
        """
        count = len(prompts)
        rows = torch.arange(count).repeat_interleave(count)  # row i·n + j is picture i under prompt j
        apart = [(i, j) for i in range(count) for j in range(count) if i != j]
        order = [(i * count + i, i * count + j) for i, j in apart] + [(j * count + j, i * count + j) for i, j in apart]
        return KnownAnswer(name=name, pictures=pictures[rows], prompts=tuple(prompts) * count, order=tuple(order), **others)

    def pairs_over_prompts(self) -> list[tuple[int, int]]:
        """The pairs in which one picture stands under two prompts."""
        return [(a, b) for a, b in self.order if self.prompts[a] != self.prompts[b] and torch.equal(self.pictures[a], self.pictures[b])]

    def pairs_over_pictures(self) -> list[tuple[int, int]]:
        """The pairs in which one prompt stands under two pictures."""
        return [(a, b) for a, b in self.order if self.prompts[a] == self.prompts[b]]
