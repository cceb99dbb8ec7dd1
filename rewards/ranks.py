"""Ranks instead of scores: what counts is the order within a group, not by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from flowrl.rl import Reward, RewardBatch, submit_scores
from rewards.pairs import check_groups, group_pairs, win_rates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["WithinGroupRank"]


@dataclass(frozen=True, kw_only=True)
class WithinGroupRank:
    """A reward whose parts are replaced by their rank within the group: 1 is the best, 0 the worst.

    ``rank_i = (#{j: s_j < s_i} + ½·#{j ≠ i: s_j = s_i}) / (G − 1)``: the share of the others that a sample beats. No outlier and no unit
    survives, so parts of different kinds can be added; a group in which all are nearly equal gets as much spread as any other.

    Each part ``name`` is reported as it is, with weight 0, and as ``name_rank`` with the reward's own weight.

    Attributes:
        reward: What scores; one that compares itself is given its groups.
    """

    reward: Reward

    needs_groups: ClassVar[bool] = True

    @property
    def weights(self) -> Mapping[str, float]:
        """The parts with weight 0, and their ranks with the reward's weights."""
        own = self.reward.weights
        return dict.fromkeys(own, 0.0) | {f"{name}_rank": weight for name, weight in own.items()}

    def __call__(self, samples: Tensor, prompts: Sequence[str], groups: Tensor | None = None) -> RewardBatch:
        """Score samples; see `flowrl.rl.GroupReward`. A sample whose score is NaN has no rank and is not compared.

        Raises:
            ValueError: If there are no groups, or one has a single member.
        """
        return self.submit(samples, prompts, check_groups(groups, len(samples)))()

    def submit(self, samples: Tensor, prompts: Sequence[str], groups: Tensor) -> Callable[[], RewardBatch]:
        """See `flowrl.rl.submit_scores`."""
        checked = check_groups(groups, len(samples))
        pending = submit_scores(self.reward, samples, prompts, checked)

        def ranked() -> RewardBatch:
            parts = pending().parts
            ranks = {f"{name}_rank": _ranks(part.cpu(), checked).to(part.device) for name, part in parts.items()}
            return RewardBatch(parts | ranks)

        return ranked


def _ranks(scores: Tensor, groups: Tensor) -> Tensor:
    pairs = group_pairs(groups)
    one, other = (scores[rows] for rows in pairs)
    outcomes = torch.where(one == other, 0.5, (one > other).float())
    return win_rates(pairs, torch.where(one.isnan() | other.isnan(), torch.nan, outcomes), len(scores))
