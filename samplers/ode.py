"""Noise-free sampling: for pictures to look at and for evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from flowrl.flow import ODE, Trajectory
from flowrl.shapes import RandomSource, float_dtype
from samplers.checks import check_at_least, check_inputs
from samplers.evaluation import Evaluator
from samplers.grids import TimeGrid, checked_times
from samplers.per_token import PerTokenSchedule
from samplers.solvers import Euler, Memory, Solver

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.flow import Condition, VelocityField

__all__ = ["ODESampler"]


@dataclass(frozen=True, kw_only=True)
class ODESampler:
    """Follows the flow from noise to data; its trajectories have final states and nothing to train on.

    Attributes:
        grid: Noise levels; with Euler steps also a :class:`samplers.PerTokenSchedule`, whose tokens are the states' second axis.
        solver: Of the steps.
        max_batch: States per call of the field; None for all at once.
        group_size: Samples per prompt, each from noise of its own.

    Raises:
        ValueError: If the grid does not decrease, times per token meet another solver than Euler, or ``max_batch`` or ``group_size`` < 1.
    """

    grid: TimeGrid
    solver: Solver = field(default_factory=Euler)
    max_batch: int | None = None
    group_size: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.grid, PerTokenSchedule):
            checked_times(self.grid.times())
        elif not isinstance(self.solver, Euler):
            raise ValueError(f"times per token need Euler steps, since a token may stay; got solver={self.solver}")
        check_at_least("max_batch", self.max_batch, 1, "leave it out to evaluate all states at once")
        check_at_least("group_size", self.group_size, 1, "it is the number of samples per prompt")

    @property
    def dynamics(self) -> ODE:
        """Noise-free."""
        return ODE()

    @property
    def initial_time(self) -> float:
        """Noise level that it starts from."""
        return float(self.grid.times().max())

    def noise_rows(self) -> int:
        """``group_size``: every sample starts from noise of its own."""
        return self.group_size

    def for_update(self, update: int, seed: int) -> ODESampler:
        """Itself: nothing changes between updates."""
        del update, seed
        return self

    def evaluations(self) -> int:
        """Network evaluations per prompt with Euler steps; Heun takes one more per step but the last."""
        return self.group_size * (len(self.grid.times()) - 1)

    @torch.no_grad()
    def sample(self, field: VelocityField, noise: Tensor, condition: Condition, generator: RandomSource = None) -> Trajectory:
        """Follow the flow; see :class:`flowrl.flow.Sampler`. The generator is not used.

        Raises:
            ValueError: If the rows of ``noise`` do not fit the prompts, or its tokens the grid.
        """
        del generator
        check_inputs(noise, condition, self.noise_rows())
        x = noise.to(float_dtype(noise))
        group = torch.arange(len(condition), device=x.device).repeat_interleave(self.group_size)
        evaluate, memory = Evaluator(field, condition, self.max_batch), Memory()
        times = self._times(x)
        for t, s in pairwise(times):
            x, memory = self.solver.step(evaluate(x, t, group), x, t, s, memory, evaluate.at(group))
        return _without_transitions(x, group, evaluate.network_evaluations)

    def _times(self, x: Tensor) -> Tensor:
        """Of every row, ``(steps + 1, row)``, or of its tokens, ``(steps + 1, row, token)``."""
        times = self.grid.times().to(x.device, x.dtype)
        if times.ndim == 1:
            return times[:, None].expand(-1, len(x))
        if times.shape[1] not in (1, len(x)) or times.shape[2:] != x.shape[1:2]:
            raise ValueError(
                f"the grid has times (step, batch, token) of shape {tuple(times.shape)}, the states are {tuple(x.shape)}; its "
                f"tokens are those on the states' second axis, its batch is 1 or {len(x)}"
            )
        return times.expand(-1, len(x), -1)


def _without_transitions(x: Tensor, group: Tensor, network_evaluations: int) -> Trajectory:
    nothing = x.new_empty(0, dtype=torch.float32)
    return Trajectory(
        samples=x[:, None, None],
        parents=x.new_empty(0, *x.shape[1:]),
        t=nothing,
        s=nothing,
        parent_condition=group[:0],
        children=x.new_empty(len(x), 0, *x.shape[1:]),
        parent_index=group.new_empty(len(x), 0),
        log_prob=x.new_empty(len(x), 0, dtype=torch.float32),
        group=group,
        network_evaluations=network_evaluations,
    )
