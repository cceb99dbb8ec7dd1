"""Comparisons within a group: which pictures meet, and how often each wins."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_groups", "group_pairs", "win_rates"]


def check_groups(groups: Tensor | None, rows: int) -> Tensor:
    """The groups, if there is one number a row and no row is alone.

    Args:
        groups: (row,) integer.
        rows: How many samples there are.

    Raises:
        ValueError: If groups are missing, of another length, or one has a single member.
    """
    if groups is None:
        raise ValueError("a reward that compares the samples of a group needs groups: the number of each sample's group")
    if groups.shape != (rows,):
        raise ValueError(f"groups must have the shape ({rows},), one number a sample, got {tuple(groups.shape)}")
    _, counts = groups.unique(return_counts=True)
    if rows and int(counts.min()) == 1:
        raise ValueError("a reward that compares needs at least two samples in every group; one has a single sample")
    return groups.cpu()


def group_pairs(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Every unordered pair of two rows of one group, the smaller row first: (pair,) each."""
    first, second = torch.triu_indices(len(groups), len(groups), offset=1)
    together = groups[first] == groups[second]
    return first[together], second[together]


def win_rates(pairs: tuple[Tensor, Tensor], outcomes: Tensor, rows: int) -> Tensor:
    """The share of its comparisons that each row wins, a draw being half a win (the pairwise reward of Pref-GRPO, arXiv:2508.20751).

    Args:
        pairs: Rows that were compared, (pair,) each.
        outcomes: 1 if the first won, 0 if the second did, 0.5 for a draw, NaN where there is no answer, which counts as no comparison.
        rows: How many rows there are.

    Returns:
        (row,) float32 in [0, 1]; NaN for a row without a single comparison.
    """
    known = outcomes.isfinite()
    first, second, won = pairs[0][known], pairs[1][known], outcomes[known].double()
    wins = torch.zeros(rows, dtype=torch.float64).index_add(0, first, won).index_add(0, second, 1 - won)
    count = torch.bincount(torch.cat([first, second]), minlength=rows)
    return torch.where(count > 0, wins / count, torch.nan).float()
