"""What every sampler of groups shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from flowrl.flow import Dynamics
from samplers.checks import STATE_DTYPES, check_at_least, check_name
from samplers.grids import TimeGrid, checked_times
from samplers.recorder import Recorder
from samplers.solvers import Euler, Solver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["GroupSampler"]


@dataclass(frozen=True, kw_only=True)
class GroupSampler:
    """A grid, dynamics for its stochastic steps, solvers for the others, and a group of rows per prompt.

    Attributes:
        grid: Noise levels.
        dynamics: Of the stochastic steps.
        group_size: Rows per prompt, at least 2: an advantage compares the members of a group.
        solver: Of the deterministic steps. It starts afresh after every stochastic step.
        tail_solver: Of the deterministic steps after the last stochastic one, which serve the reward alone; None for ``solver``.
        max_batch: States per call of the field; None for all at once.
        state_dtype: In which states are stored for training; they are rounded first and scored as stored.

    Raises:
        ValueError: If the grid does not decrease, the group is smaller than two, ``max_batch`` < 1 or the dtype is unknown.
    """

    grid: TimeGrid
    dynamics: Dynamics
    group_size: int
    solver: Solver = field(default_factory=Euler)
    tail_solver: Solver | None = None
    max_batch: int | None = None
    state_dtype: str = "float32"

    def __post_init__(self) -> None:
        checked_times(self.grid.times())
        check_at_least("group_size", self.group_size, 2, "an advantage compares the members of a group")
        check_at_least("max_batch", self.max_batch, 1, "leave it out to evaluate all states at once")
        check_name("state_dtype", self.state_dtype, tuple(STATE_DTYPES))

    @property
    def initial_time(self) -> float:
        """Noise level that it starts from."""
        return float(self.grid.times().max())

    @property
    def steps(self) -> int:
        """Steps of the grid."""
        return len(self.grid.times()) - 1

    def _times(self, like: Tensor) -> Tensor:
        return self.grid.times().to(like.device, like.dtype)

    def _recorder(self, trained: Sequence[int], like: Tensor, prompts: int) -> Recorder:
        group = torch.arange(prompts, device=like.device).repeat_interleave(self.group_size)
        return Recorder(self.dynamics, trained, self._times(like), group=group, state=like.shape[1:], dtype=STATE_DTYPES[self.state_dtype])
