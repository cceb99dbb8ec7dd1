"""What a schedule did while a model acted under it: mean times, and evaluations of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robot.gating.rollouts import Tally
from robot.world.denoising import Denoising, Schedule

__all__ = ["Watch", "schedule_metrics"]


@dataclass(kw_only=True, eq=False)
class Watch:
    """A schedule that behaves as another one, and takes notes.

    Attributes:
        schedule: The other one.
    """

    schedule: Schedule
    _sums: Tensor | None = None
    _tally: Tally = field(default_factory=Tally)
    _state: Denoising | None = None

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return self.schedule.steps

    def next(self, state: Denoising) -> tuple[Tensor, Tensor]:
        """See :class:`robot.world.denoising.Schedule`."""
        times, action = self.schedule.next(state)
        if state.step == 0:
            self._settle()
            self._state = state
            self._note(0, state.times)
        self._note(state.step + 1, times)
        return times, action

    @property
    def times(self) -> list[list[float]]:
        """Mean times over all chunks so far, ``(step + 1, latent)``; empty before the first."""
        self._settle()
        return [] if self._sums is None else (self._sums / max(1, self._tally.chunks)).tolist()

    @property
    def tally(self) -> Tally:
        """Evaluations so far."""
        self._settle()
        return self._tally

    def _note(self, step: int, times: Tensor) -> None:
        if self._sums is None:
            self._sums = torch.zeros(self.steps + 1, times.shape[1], dtype=torch.float64)
        self._sums[step] += times.sum(0).cpu().double()

    def _settle(self) -> None:
        """Count the last chunks, which are done when the next begin."""
        if self._state is not None:
            self._tally.add(self._state)
            self._state = None


def schedule_metrics(times: Tensor, multipliers: Tensor) -> dict[str, Any]:
    """Means over chunks, as lists.

    Args:
        times: ``(step + 1, batch, latent)``.
        multipliers: ``(batch, step, latent)``.

    Returns:
        ``times`` ``(step + 1, latent)``, ``final_time`` ``(latent,)`` and ``multiplier`` ``(latent,)``, the mean over the steps too.
    """
    mean = times.mean(1)
    return {"times": mean.tolist(), "final_time": mean[-1].tolist(), "multiplier": multipliers.double().mean((0, 1)).tolist()}
