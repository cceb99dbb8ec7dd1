"""What one rollout gives to the update: transitions, advantages, and how to score them again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.flow import Condition, Dynamics, Trajectory, Transition

if TYPE_CHECKING:
    from flowrl.flow import VelocityField

__all__ = ["Children", "Collected", "Experience", "transition_at"]


@dataclass(frozen=True)
class Children:
    """The stochastic steps that start from some parents, flattened to ``(child,)``.

    Attributes:
        row: Row of the trajectory.
        step: Column of the trajectory.
        parent: Position of the parent among the parents asked for.
    """

    row: Tensor
    step: Tensor
    parent: Tensor

    def __len__(self) -> int:
        """Number of children."""
        return len(self.row)


@dataclass(frozen=True, kw_only=True)
class Experience:
    """One process's share of a rollout.

    Attributes:
        trajectory: The transitions.
        condition: One row per prompt.
        dynamics: What drew the transitions.
        advantage: ``(row, step)``.
        kept: ``(row,)`` bool, the rows that count, where a reward failed for others; None where all of all processes do.
    """

    trajectory: Trajectory
    condition: Condition
    dynamics: Dynamics
    advantage: Tensor
    kept: Tensor | None = None

    def counts(self, children: Children) -> Tensor:
        """Which children count, ``(child,)`` bool."""
        return torch.ones_like(children.row, dtype=torch.bool) if self.kept is None else self.kept[children.row]

    def parents_by_time(self) -> Tensor:
        """All parents, noisiest first: ``(parent,)`` integer."""
        return torch.argsort(self.trajectory.t, descending=True, stable=True)

    def cut_by_time(self, count: int) -> list[Tensor]:
        """All parents in so many parts of about the same number, noisiest first; some are empty if there are fewer parents."""
        return list(self.parents_by_time().tensor_split(count))

    def cut_by_sample(self, count: int) -> list[Tensor]:
        """All parents in so many parts, each with all parents of its share of the rows, noisiest first.

        A parent that several rows share goes with the first of them; a part may be empty.
        """
        index, by_time = self.trajectory.parent_index, self.parents_by_time()
        rows = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
        first = rows.new_full((len(self.trajectory.parents),), len(index)).scatter_reduce(0, index.flatten(), rows.flatten(), "amin")
        part = (first * count // len(index))[by_time]
        return [by_time[part == number] for number in range(count)]

    def children_of(self, parents: Tensor) -> Children:
        """The children of these parents, ``(parent,)`` integer."""
        position = torch.full((len(self.trajectory.parents),), -1, device=parents.device)
        position[parents] = torch.arange(len(parents), device=parents.device)
        of_child = position[self.trajectory.parent_index]
        row, step = (of_child >= 0).nonzero(as_tuple=True)
        return Children(row, step, of_child[row, step])

    def log_prob(self, kernel: Transition, children: Children) -> Tensor:
        """Log-probability of the stored children under the parents' transitions, ``(child,)`` nats per dimension."""
        of_child = Transition(kernel.mean[children.parent], kernel.std[children.parent])
        return of_child.log_prob(self.trajectory.children[children.row, children.step].float())

    def with_old_log_prob(self, log_prob: Tensor) -> Experience:
        """The same experience with other old log-probabilities, ``(row, step)``."""
        return replace(self, trajectory=replace(self.trajectory, log_prob=log_prob))


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What one update learns from.

    Attributes:
        experience: Of this process.
        rewards: Of all processes' groups that were scored, ``(row, view, granularity, part)``, prompt-major.
        kept: Which groups were, ``(group,)`` bool.
        indices: Of the prompts, one per group.
        pictures: Decoded by all processes.
        seconds: Wall time by phase.
    """

    experience: Experience
    rewards: Tensor
    kept: Tensor
    indices: list[int]
    pictures: int
    seconds: dict[str, float]


def transition_at(field: VelocityField, experience: Experience, parents: Tensor) -> Transition:
    """The transitions that a policy gives the parents: one network evaluation each, however many children they have."""
    trajectory = experience.trajectory
    x_t, t = trajectory.parents[parents].float(), trajectory.t[parents]
    velocity = field(x_t, t, experience.condition[trajectory.parent_condition[parents]])
    return experience.dynamics.transition(velocity, x_t, t, trajectory.s[parents])
