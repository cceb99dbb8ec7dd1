"""Which rows may be scored apart from each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["row_batches"]


def row_batches(groups: Tensor, size: int, *, whole: bool) -> list[list[Tensor]]:
    """Rows that are scored at once, as units that may also be scored apart.

    Args:
        groups: ``(row,)`` integer.
        size: Rows of a batch; a group that is larger makes one of its own.
        whole: Whether rows of a group must stay together; else every row is a unit.

    Returns:
        Batches of units, ``(row,)`` integer each.
    """
    batches: list[list[Tensor]] = []
    for unit in _units(groups, whole=whole) if len(groups) else []:
        if batches and sum(map(len, batches[-1])) + len(unit) <= size:
            batches[-1].append(unit)
        else:
            batches.append([unit])
    return batches


def _units(groups: Tensor, *, whole: bool) -> list[Tensor]:
    if not whole:
        return list(torch.arange(len(groups)).split(1))
    return [(groups == group).nonzero()[:, 0] for group in dict.fromkeys(groups.tolist())]
