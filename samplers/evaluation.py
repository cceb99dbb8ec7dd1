"""Calls of the field: in batches of a bounded size, counted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from flowrl.flow import evaluations_per_state, has_tail, tail_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from flowrl.flow import Condition, VelocityField
    from samplers.solvers import Evaluate

__all__ = ["Evaluator"]


class Evaluator:
    """A velocity field that is called for at most ``max_batch`` states at a time and counts them.

    Args:
        field: The policy.
        condition: One row per prompt.
        max_batch: States per call; None for all at once. The numbers do not depend on it beyond rounding.
    """

    def __init__(self, field: VelocityField, condition: Condition, max_batch: int | None = None) -> None:
        self._field = field
        self._condition = condition
        self._max_batch = max_batch
        self._states = 0

    @property
    def max_batch(self) -> int | None:
        """States per call; None for all at once."""
        return self._max_batch

    @property
    def has_tail(self) -> bool:
        """Whether the field offers another for the steps after the last stochastic one."""
        return has_tail(self._field)

    @contextmanager
    def tail(self) -> Iterator[Evaluator]:
        """Calls of the field's tail for one path of at most ``max_batch`` rows, counted here; see :func:`flowrl.flow.tail_of`."""
        with tail_of(self._field) as field:
            own = Evaluator(field, self._condition)
            yield own
        self._states += own._states

    @property
    def network_evaluations(self) -> int:
        """States that the network has evaluated so far, guidance counted; where a tail skips a part of the network, counted in full."""
        return self._states * evaluations_per_state(self._field)

    def __call__(self, x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        """The velocity of rows at times of their own.

        Args:
            x: ``(row, *state)``.
            t: ``(row,)``.
            prompts: ``(row,)`` integer, each row's row of the condition.

        Returns:
            ``(row, *state)`` in the state's dtype.
        """
        self._states += len(x)
        size = self._max_batch or max(len(x), 1)
        if len(x) <= size:
            return self._field(x, t, self._condition[prompts]).to(x.dtype)
        velocity = torch.empty_like(x)
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            velocity[part] = self._field(x[part], t[part], self._condition[prompts[part]])
        return velocity

    def at(self, prompts: Tensor) -> Evaluate:
        """What a solver may call for some of its rows, given the prompts of all of them."""
        return lambda x, t, rows: self(x, t, prompts[rows])
