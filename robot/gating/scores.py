"""From rewards of episodes to one advantage per chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrl.rl import AdvantageEstimator
    from robot.evaluation.episodes import EpisodeResult
    from robot.gating.rewards import EpisodeReward

__all__ = ["Scores", "shared_out"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the members of groups were worth.

    Attributes:
        values: ``(member, part)`` float64, members of a group side by side.
        weights: By part, how much it counts.
        group_size: Members of a group.
        valid: ``(member,)`` bool: False where an episode crashed, which says nothing about the gate.
    """

    values: Tensor
    weights: Mapping[str, float]
    group_size: int
    valid: Tensor

    @classmethod
    def of(cls, results: Sequence[EpisodeResult], reward: EpisodeReward, group_size: int) -> Scores:
        """Score episodes.

        Args:
            results: Of all members, group after group.
            reward: Scores one of them.
            group_size: Members of a group.

        Raises:
            ValueError: If a reward is not finite or lacks a part.
        """
        names = tuple(reward.weights)
        values = torch.zeros(len(results), len(names), dtype=torch.float64)
        for row, result in enumerate(results):
            if not result.crashed:
                found = reward(result)
                if missing := [name for name in names if name not in found]:
                    raise ValueError(f"{type(reward).__name__} gave no {', '.join(missing)}; it has to give every part that has a weight")
                values[row] = torch.tensor([found[name] for name in names])
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"the reward of seed {results[row].seed} is {values[row].tolist()}; rewards must be finite")
        return cls(values=values, weights=dict(reward.weights), group_size=group_size, valid=torch.tensor([not r.crashed for r in results]))

    @property
    def totals(self) -> Tensor:
        """Weighted sum of the parts, ``(group, member)`` float64."""
        weights = self.values.new_tensor(list(self.weights.values()))
        return (self.values * weights).sum(1).unflatten(0, (-1, self.group_size))

    @property
    def informative(self) -> Tensor:
        """Groups whose members differ, ``(group,)`` bool; the others have no advantage."""
        valid = self.valid.unflatten(0, (-1, self.group_size))
        inf = torch.inf
        return self.totals.masked_fill(~valid, -inf).amax(1) > self.totals.masked_fill(~valid, inf).amin(1)

    def advantages(self, estimator: AdvantageEstimator) -> Tensor:
        """Of every member ``(member,)`` float32; a crashed one has none, and counts as its group's mean for the others.

        Args:
            estimator: Compares the members of a group.
        """
        grouped, valid = (part.unflatten(0, (-1, self.group_size)) for part in (self.values, self.valid[:, None]))
        mean = (grouped * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
        filled = torch.where(valid, grouped, mean).flatten(0, 1)
        groups = torch.arange(len(grouped)).repeat_interleave(self.group_size)
        weights = filled.new_tensor(list(self.weights.values()))
        found = estimator(filled[:, None, None], groups, weights).squeeze(1).float()
        return torch.where(self.valid & self.informative.repeat_interleave(self.group_size), found, 0.0)

    def metrics(self) -> dict[str, float]:
        """``reward`` and its parts over what did not crash, their spread within a group, and the share of informative groups."""
        valid = self.valid if bool(self.valid.any()) else torch.ones_like(self.valid)
        parts = {f"reward/{name}": float(self.values[valid, place].mean()) for place, name in enumerate(self.weights)}
        return {
            "reward": float(self.totals.flatten()[valid].mean()),
            **parts,
            "reward_spread": float(self.totals.std(1, correction=0).mean()),
            "informative": float(self.informative.double().mean()),
        }


def shared_out(advantages: Tensor, members: Tensor, *, per_episode: bool) -> Tensor:
    """The advantage of every chunk: that of its episode.

    The policy gradient adds up over decisions, so that long episodes, which have more of them, weigh more. Where an episode makes but one
    draw, that draw must count once, however long the episode: its chunks then share it evenly.

    Args:
        advantages: ``(member,)``.
        members: Whose chunk it is, ``(chunk,)`` integer.
        per_episode: Whether the draw was held for the episode.

    Returns:
        ``(chunk,)``, of the same mean size over chunks as if all episodes were equally long.
    """
    if not per_episode:
        return advantages[members]
    lengths = members.bincount(minlength=len(advantages))
    played = int((lengths > 0).sum())
    return (advantages / lengths.clamp(min=1))[members] * (len(members) / played)
