"""The engine of samplers whose stochastic steps lie on one path: noise, steps with and without noise, data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flowrl.shapes import float_dtype
from samplers.base import GroupSampler
from samplers.checks import check_at_least, check_inputs
from samplers.evaluation import Evaluator
from samplers.granular import granular_indices
from samplers.solvers import Memory
from samplers.tails import follow_tail

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.flow import Condition, Trajectory, VelocityField
    from flowrl.shapes import RandomSource

__all__ = ["ChainSampler"]


@dataclass(frozen=True, kw_only=True)
class ChainSampler(GroupSampler, ABC):
    """A path on which some steps are stochastic and some of those are trained.

    Where the members of a group start from the same noise they share all states before the first stochastic step: those are evaluated
    once per prompt, and the group forks there.

    Attributes:
        shared_noise: Whether the members of a group start from the same noise.
        tail_stride: Granularity of the steps after the last stochastic one, see :func:`samplers.granular_indices`; 1 is the grid itself.

    Raises:
        ValueError: See :class:`samplers.base.GroupSampler`; also if ``tail_stride`` < 1.
    """

    shared_noise: bool = False
    tail_stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("tail_stride", self.tail_stride, 1, "1 takes every step of the grid")

    @abstractmethod
    def stochastic(self) -> tuple[int, ...]:
        """Grid indices of the stochastic steps, increasing."""

    @abstractmethod
    def trained(self) -> tuple[int, ...]:
        """Grid indices of the stochastic steps that are kept for training, increasing."""

    def noise_rows(self) -> int:
        """1 if the members of a group share their initial noise, else ``group_size``."""
        return 1 if self.shared_noise else self.group_size

    def evaluations(self) -> int:
        """Network evaluations per prompt with solvers that take one a step, such as Euler."""
        shared = self.stochastic()[0] + 1
        return shared * self.noise_rows() + (len(self.visited()) - shared) * self.group_size

    def visited(self) -> tuple[int, ...]:
        """Grid indices of the states that the path evaluates, increasing; from the last it steps to the end of the grid."""
        last = max(self.stochastic())
        return (*range(last + 1), *granular_indices(self.steps, last, self.tail_stride))

    @torch.no_grad()
    def sample(self, field: VelocityField, noise: Tensor, condition: Condition, generator: RandomSource = None) -> Trajectory:
        """Draw; see :class:`flowrl.flow.Sampler`.

        Raises:
            ValueError: If the rows of ``noise`` do not fit the prompts.
        """
        check_inputs(noise, condition, self.noise_rows())
        x = noise.to(float_dtype(noise))
        evaluate, memory = Evaluator(field, condition, self.max_batch), Memory()
        recorder, times = self._recorder(self.trained(), x, len(condition)), self._times(x)
        prompts = torch.arange(len(condition), device=x.device).repeat_interleave(self.noise_rows())
        stochastic = frozenset(self.stochastic())
        last = max(stochastic)
        for index in range(last + 1):
            t, s = times[index].expand(len(x)), times[index + 1].expand(len(x))
            if index in stochastic:
                x = recorder.rounded(x)
                x = recorder.draw(index, x, evaluate(x, t, prompts), generator)
                prompts, memory = recorder.group, Memory()
            else:
                x, memory = self.solver.step(evaluate(x, t, prompts), x, t, s, memory, evaluate.at(prompts))
        tail = times[[*self.visited()[last + 1 :], self.steps]]
        x = follow_tail(evaluate, x, tail, prompts, self.tail_solver or self.solver)
        return recorder.trajectory(x[:, None, None], evaluate.network_evaluations)
