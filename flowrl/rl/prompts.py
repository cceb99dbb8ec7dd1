"""Which prompts the next update trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from flowrl.shapes import seeded_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["PromptSampler", "UniformPrompts"]


class PromptSampler(Protocol):
    """Chooses prompts by index; the same on every process.

    One that can tell in advance which prompts a run will draw has a method ``upcoming(updates, count, slots)``, see
    :class:`UniformPrompts`; only those are encoded where a run encodes its prompts first.
    """

    def draw(self, update: int, count: int) -> list[int]:
        """Return the indices of the ``count`` prompts of one update, over all processes."""
        ...

    def observe(self, indices: Sequence[int], rewards: Tensor) -> None:
        """Learn how the drawn prompts went.

        Args:
            indices: The prompts as drawn, one a group.
            rewards: (group, member), the weighted reward of each sample.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold to go on with the same prompts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        ...


@dataclass(frozen=True, kw_only=True)
class UniformPrompts:
    """Every prompt once an epoch, in an order drawn anew from (seed, epoch).

    It keeps no state: update u takes the positions u·count … (u + 1)·count − 1 of the endless sequence of epochs, so a
    resumed run and every process see the same prompts. An update may span the end of an epoch, or several epochs.

    Attributes:
        prompts_count: Number of prompts there are.
        seed: Any integer; another seed gives other orders.
    """

    prompts_count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompts_count < 1:
            raise ValueError(f"prompts_count must be >= 1, got {self.prompts_count}; is the prompt file empty?")

    def draw(self, update: int, count: int) -> list[int]:
        """Return the ``count`` prompt indices of ``update``, 0 being the first update.

        Raises:
            ValueError: If ``update`` < 0 or ``count`` < 1.
        """
        if update < 0 or count < 1:
            raise ValueError(f"update must be >= 0 and count >= 1, got update={update}, count={count}")
        start = update * count
        first, last = start // self.prompts_count, (start + count - 1) // self.prompts_count
        epochs = [torch.randperm(self.prompts_count, generator=seeded_generator(self.seed, epoch)) for epoch in range(first, last + 1)]
        offset = start - first * self.prompts_count
        return torch.cat(epochs)[offset : offset + count].tolist()

    def upcoming(self, updates: int, count: int, slots: range) -> list[int]:
        """Return every prompt that the first ``updates`` updates of ``count`` draw in these slots, once, ascending."""
        return sorted({index for update in range(updates) for index in self.draw(update, count)[slots.start : slots.stop]})

    def observe(self, indices: Sequence[int], rewards: Tensor) -> None:
        """Do nothing: the draw does not depend on rewards."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing."""
