"""What a sampler hands to training, and what training asks of a sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrl.flow.condition import Condition
    from flowrl.flow.dynamics import Dynamics
    from flowrl.flow.field import VelocityField
    from flowrl.shapes import RandomSource

__all__ = ["Sampler", "Trajectory"]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The stochastic transitions to train on, and the final states to reward.

    Rows are the samples of all groups, prompt-major: ``row = prompt·group_size + member``. A state from which several
    rows branch is stored once, as one *parent*: one forward and backward there trains all its children.

    Attributes:
        samples: ``(row, view, granularity, *state)``, final states. ``view`` is 1 where one final state serves all steps
            of its row, else one per step (G²RPO).
        parents: ``(parent, *state)``, states from which a stochastic step starts.
        t: ``(parent,)``, noise level there.
        s: ``(parent,)``, noise level of the children.
        parent_condition: ``(parent,)`` integer, the parent's row of the condition.
        children: ``(row, step, *state)``, as stored; log-probabilities are of exactly these.
        parent_index: ``(row, step)`` integer, the parent of each child.
        log_prob: ``(row, step)`` float32, nats per dimension, under the policy that drew the children.
        group: ``(row,)`` integer, the prompt: rows of one group are compared with each other.
        network_evaluations: States that the network evaluated, guidance counted.
    """

    samples: Tensor
    parents: Tensor
    t: Tensor
    s: Tensor
    parent_condition: Tensor
    children: Tensor
    parent_index: Tensor
    log_prob: Tensor
    group: Tensor
    network_evaluations: int

    @property
    def final(self) -> Tensor:
        """``(row, *state)``: the first final state of each row, for samplers that make just one."""
        return self.samples[:, 0, 0]

    @staticmethod
    def cat(parts: Sequence[Trajectory]) -> Trajectory:
        """Join trajectories of different prompts: rows, parents and prompts of a later part count on from the earlier ones.

        Args:
            parts: At least one, of the same sampler; their conditions are joined in the same order.
        """
        plain = ("samples", "parents", "t", "s", "children", "log_prob")
        numbered: dict[str, list[Tensor]] = {"parent_condition": [], "parent_index": [], "group": []}
        parents = prompts = 0
        for part in parts:
            numbered["parent_condition"].append(part.parent_condition + prompts)
            numbered["parent_index"].append(part.parent_index + parents)
            numbered["group"].append(part.group + prompts)
            parents, prompts = parents + len(part.parents), prompts + int(part.group.max()) + 1
        evaluations = sum(part.network_evaluations for part in parts)
        columns = {name: [getattr(part, name) for part in parts] for name in plain} | numbered
        return Trajectory(**{name: torch.cat(column) for name, column in columns.items()}, network_evaluations=evaluations)


class Sampler(Protocol):
    """How trajectories are drawn."""

    @property
    def dynamics(self) -> Dynamics:
        """What draws the stochastic steps and scores them in the update."""
        ...

    @property
    def group_size(self) -> int:
        """Rows per prompt."""
        ...

    @property
    def initial_time(self) -> float:
        """Noise level that it starts from; 1 is pure noise."""
        ...

    def noise_rows(self) -> int:
        """Rows of initial noise that :meth:`sample` wants per prompt: 1 (shared by the group) or ``group_size``."""
        ...

    def for_update(self, update: int, seed: int) -> Sampler:
        """The sampler of this update: a moved window, a drawn subset of steps; the same on every process."""
        ...

    def evaluations(self) -> int:
        """Network evaluations per prompt of one :meth:`sample`, before guidance, in closed form."""
        ...

    def sample(self, field: VelocityField, noise: Tensor, condition: Condition, generator: RandomSource = None) -> Trajectory:
        """Draw.

        Args:
            field: The policy.
            noise: Initial states, ``(prompt·noise_rows, *state)``.
            condition: One row per prompt.
            generator: Source of the steps' noise: one, or one per prompt.
        """
        ...
