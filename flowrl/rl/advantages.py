"""Advantages: how much better a sample is than the other samples of its group.

All of them are computed in float64. In float32 the rounding of a group's mean leaves ``reward - mean`` different
from 0 in a group of equal rewards, and dividing that by its own standard deviation gives advantages of up to 0.8 out
of nothing; an epsilon of 1e-8 does not prevent it. So groups of equal rewards are found by ``max == min`` and get 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AdvantageEstimator", "GroupAdvantage", "Integration", "MultiGranularityAdvantage", "Std", "group_advantage"]

Std = Literal["group", "batch", "none"]
Integration = Literal["sum", "mean"]
_AXES = ("row", "view", "granularity", "part")
_SMALLEST_GROUP = 2
_ROWS_SHOWN = 8


def group_advantage(rewards: Tensor, group_ids: Tensor, std: Std = "group", ddof: int = 1, eps: float = 1e-8) -> Tensor:
    """Centre rewards on their group's mean and divide by a standard deviation (GRPO, arXiv:2402.03300, Sec. 4.1.2).

    ``A_i = (r_i − mean(group of i)) / (std + eps)``. With ``std="group"`` and ``ddof=1`` no member of a group of G
    gets more than (G − 1) / sqrt(G).

    Args:
        rewards: One number a sample, (batch,), any unit.
        group_ids: Which group a sample belongs to, (batch,), integer; any labels, any order, groups of any size >= 2.
        std: Divide by the deviation of the sample's own group (GRPO), of the whole batch (Lite PPO; Flow-GRPO's
            ``global_std``), or by 1 (Dr. GRPO). The batch is the rows given here: with several processes, gather first.
        ddof: 1 for the unbiased variance (G²RPO, DanceGRPO, MixGRPO), 0 for the population's (Flow-GRPO).
        eps: Added to the deviation; plays no part for groups of equal rewards, which get exactly 0.

    Returns:
        Advantages (batch,), dimensionless except for ``std="none"``, float32 or the wider dtype of ``rewards``.

    Raises:
        ValueError: If shapes disagree, a reward is not finite, a group has one member, or an option is not one of the above.
    """
    if rewards.ndim != 1:
        raise ValueError(f"rewards must have the shape (batch,), got {tuple(rewards.shape)}")
    standardised = _standardise(rewards, group_ids, std, ddof, eps)
    return standardised.to(torch.promote_types(rewards.dtype, torch.float32))


class AdvantageEstimator(Protocol):
    """Turns all scores of a batch into one advantage a sample and view."""

    def __call__(self, rewards: Tensor, group_ids: Tensor, weights: Tensor) -> Tensor:
        """Estimate advantages.

        Args:
            rewards: (row, view, granularity, part); a view is a stochastic step that has its own final sample, or the only one.
            group_ids: (row,) integer. Every view of a group is normalised on its own.
            weights: (part,), how much each part counts.

        Returns:
            (row, view), at least float32.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class GroupAdvantage:
    """Sum the parts first, then normalise within the group: GRPO, DanceGRPO, MixGRPO, Flow-GRPO.

    Attributes:
        std: See :func:`group_advantage`.
        ddof: See :func:`group_advantage`.
        eps: See :func:`group_advantage`.
        clamp: Largest size of an advantage; None for no limit.
    """

    std: Std = "group"
    ddof: int = 1
    eps: float = 1e-8
    clamp: float | None = 5.0

    def __post_init__(self) -> None:
        _check_options(self.std, self.ddof, self.eps, self.clamp)

    def __call__(self, rewards: Tensor, group_ids: Tensor, weights: Tensor) -> Tensor:
        """Average the granularities, weight the parts, normalise; see :class:`AdvantageEstimator`."""
        _check_scores(rewards, weights)
        totals = _weighted_sum(rewards.double(), weights)
        means = _weighted_sum(totals, totals.new_ones(totals.shape[2])) / totals.shape[2]
        advantages = _standardise(means, group_ids, self.std, self.ddof, self.eps)
        return _finish(advantages, rewards.dtype, self.clamp)


@dataclass(frozen=True, kw_only=True)
class MultiGranularityAdvantage:
    """Normalise every granularity and part within the group, then integrate them (G²RPO, arXiv:2510.01982, Sec. 3.3).

    ``A_i = clamp(sum_part w_part sum_granularity (r_i - mean) / (std + eps))``, per stochastic step (view).
    The sum grows with the number of granularities; ``integrate="mean"`` keeps the scale when that number is compared.

    Attributes:
        std: See :func:`group_advantage`.
        ddof: See :func:`group_advantage`.
        eps: See :func:`group_advantage`.
        integrate: How granularities are joined: the paper and the official code take the sum.
        clamp: Largest size of the result, applied last as in the official code; None for no limit.
    """

    std: Std = "group"
    ddof: int = 1
    eps: float = 1e-8
    integrate: Integration = "sum"
    clamp: float | None = 5.0

    def __post_init__(self) -> None:
        _check_options(self.std, self.ddof, self.eps, self.clamp)
        if self.integrate not in get_args(Integration):
            raise ValueError(f"integrate must be one of {get_args(Integration)}, got {self.integrate!r}")

    def __call__(self, rewards: Tensor, group_ids: Tensor, weights: Tensor) -> Tensor:
        """Normalise, weight the parts, integrate the granularities; see :class:`AdvantageEstimator`."""
        _check_scores(rewards, weights)
        advantages = _standardise(rewards, group_ids, self.std, self.ddof, self.eps) @ weights.double().to(rewards.device)
        joined = advantages.sum(-1) if self.integrate == "sum" else advantages.mean(-1)
        return _finish(joined, rewards.dtype, self.clamp)


def _standardise(rewards: Tensor, group_ids: Tensor, std: Std, ddof: int, eps: float) -> Tensor:
    """Return the float64 advantages of every column of ``rewards``, (row, ...), within the groups of rows."""
    _check_options(std, ddof, eps, None)
    _check_rows(rewards, group_ids)
    columns = rewards.detach().double().flatten(1) if rewards.ndim > 1 else rewards.detach().double()[:, None]
    _, group, size = torch.unique(group_ids, return_inverse=True, return_counts=True)
    _check_group_sizes(group_ids, size[group])
    empty = columns.new_zeros(len(size), columns.shape[1])
    index = group[:, None].expand_as(columns)
    highest = empty.scatter_reduce(0, index, columns, "amax", include_self=False)
    lowest = empty.scatter_reduce(0, index, columns, "amin", include_self=False)
    deviation = columns - (empty.index_add(0, group, columns) / size[:, None])[group]
    if std == "group":
        variance = empty.index_add(0, group, deviation.square()) / (size - ddof)[:, None]
        deviation = deviation / (variance.sqrt()[group] + eps)
    elif std == "batch":
        deviation = deviation / (columns.std(0, correction=ddof) + eps)
    return torch.where((highest == lowest)[group], 0.0, deviation).reshape(rewards.shape)


def _weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """Sum the last axis with weights, term by term: equal rows give sums equal to the last bit, which no fused reduction promises."""
    terms = [part * weight for part, weight in zip(rewards.unbind(-1), weights.double().tolist(), strict=True)]
    return reduce(torch.add, terms)


def _finish(advantages: Tensor, dtype: torch.dtype, clamp: float | None) -> Tensor:
    """Clamp and return to float32, or to the wider dtype of the rewards."""
    clamped = advantages if clamp is None else advantages.clamp(-clamp, clamp)
    return clamped.to(torch.promote_types(dtype, torch.float32))


def _check_options(std: str, ddof: int, eps: float, clamp: float | None) -> None:
    if std not in get_args(Std):
        raise ValueError(f"std must be one of {get_args(Std)}, got {std!r}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 (population) or 1 (unbiased), got {ddof!r}")
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp must be > 0, got {clamp}; for no limit use None")


def _check_scores(rewards: Tensor, weights: Tensor) -> None:
    if rewards.ndim != len(_AXES):
        raise ValueError(f"rewards must have the shape ({', '.join(_AXES)}), got {tuple(rewards.shape)}")
    if weights.shape != rewards.shape[-1:]:
        raise ValueError(f"weights must have the shape ({rewards.shape[-1]},), one a reward part, got {tuple(weights.shape)}")
    if not torch.isfinite(weights).all():
        raise ValueError(f"weights must be finite, got {weights.tolist()}")


def _check_rows(rewards: Tensor, group_ids: Tensor) -> None:
    if group_ids.shape != rewards.shape[:1]:
        raise ValueError(f"group_ids must have the shape ({len(rewards)},), one a reward row, got {tuple(group_ids.shape)}")
    if group_ids.is_floating_point():
        raise ValueError(f"group_ids must be integers, got {group_ids.dtype}")
    bad = (~torch.isfinite(rewards)).flatten(1).any(1) if rewards.ndim > 1 else ~torch.isfinite(rewards)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
        raise ValueError(f"rewards must be finite, but rows {rows[:_ROWS_SHOWN]}{more} are not; look at the reward of these samples")


def _check_group_sizes(group_ids: Tensor, size: Tensor) -> None:
    if (size < _SMALLEST_GROUP).any():
        alone = group_ids[size < _SMALLEST_GROUP].tolist()[:_ROWS_SHOWN]
        raise ValueError(f"a group needs at least two members to have an advantage, but groups {alone} have one; raise group_size")
