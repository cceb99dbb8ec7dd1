"""Draws stochastic steps and keeps those that are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flowrl.flow import Trajectory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from flowrl.flow import Dynamics
    from flowrl.shapes import RandomSource

__all__ = ["Recorder"]


class Recorder:
    """The transitions of one rollout.

    Storage for the children is taken once, so a rollout keeps nothing for steps that are not trained.

    Args:
        dynamics: What draws and scores the steps.
        trained: Grid indices of the steps to keep, one column each.
        times: ``(steps + 1,)``, in the dtype and on the device of the states.
        group: ``(row,)`` integer, the prompt of each row.
        state: Shape of one state.
        dtype: In which states are stored; log-probabilities are of the states as stored.
    """

    def __init__(
        self, dynamics: Dynamics, trained: Sequence[int], times: Tensor, *, group: Tensor, state: Sequence[int], dtype: torch.dtype
    ) -> None:
        rows, steps = len(group), len(trained)
        self._dynamics = dynamics
        self._times = times
        self.group = group
        self._dtype = dtype
        self._columns = {index: column for column, index in enumerate(trained)}
        self._parents: list[Tensor] = []
        self._parent_steps: list[int] = []
        self._parent_condition: list[Tensor] = []
        self._parent_index = torch.empty(rows, steps, dtype=torch.long, device=group.device)
        self._log_prob = torch.empty(rows, steps, dtype=torch.float32, device=group.device)
        self.children = torch.empty(rows, steps, *state, dtype=dtype, device=group.device)

    def rounded(self, x: Tensor) -> Tensor:
        """The states as they will be stored: what the velocity of a stochastic step must be evaluated at."""
        return x.to(self._dtype).to(x.dtype)

    def draw(self, index: int, x: Tensor, velocity: Tensor, generator: RandomSource) -> Tensor:
        """Take the stochastic step ``index`` once for every row of the rollout.

        Args:
            index: Grid index of the step.
            x: ``(parent, *state)``, rounded; where there are fewer parents than rows, each is shared by as many consecutive rows.
            velocity: Of the parents.
            generator: Source of the noise.

        Returns:
            The children, ``(row, *state)``, in the dtype of ``x``, rounded.
        """
        fork = len(self.group) // len(x)
        v, x_t = (velocity, x) if fork == 1 else (velocity.repeat_interleave(fork, 0), x.repeat_interleave(fork, 0))
        kernel = self._dynamics.transition(v, x_t, self._times[index], self._times[index + 1])
        children = self.rounded(kernel.sample(generator))
        if index in self._columns:
            column = self._columns[index]
            self.children[:, column] = children.to(self._dtype)
            self._log_prob[:, column] = kernel.log_prob(children)
            self._keep_parents(index, x, fork)
        return children

    def _keep_parents(self, index: int, x: Tensor, fork: int) -> None:
        first = sum(map(len, self._parents))
        places = torch.arange(first, first + len(x), device=x.device)
        self._parent_index[:, self._columns[index]] = places.repeat_interleave(fork)
        self._parents.append(x.to(self._dtype))
        self._parent_steps += [index] * len(x)
        self._parent_condition.append(self.group[::fork])

    def trajectory(self, samples: Tensor, network_evaluations: int) -> Trajectory:
        """What was kept, with the final states ``(row, view, granularity, *state)``."""
        steps = torch.tensor(self._parent_steps, dtype=torch.long, device=self.group.device)
        return Trajectory(
            samples=samples,
            parents=torch.cat(self._parents),
            t=self._times[steps].float(),
            s=self._times[steps + 1].float(),
            parent_condition=torch.cat(self._parent_condition),
            children=self.children,
            parent_index=self._parent_index,
            log_prob=self._log_prob,
            group=self.group,
            network_evaluations=network_evaluations,
        )
