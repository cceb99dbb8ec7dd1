"""How a multiplier moves a latent's time, and what happens at the end of the grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from samplers.per_token import advanced

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BOUNDARIES", "Boundary"]

Boundary = Literal["clamp", "finish", "normalise"]


def _finish(t: Tensor, r: Tensor, grid: Tensor, k: int) -> Tensor:
    """As :func:`samplers.per_token.advanced`, but the last step ends at 0 whatever the multiplier."""
    return torch.zeros_like(t) if k == len(grid) - 2 else advanced(t, r, grid, k)


def _normalise(t: Tensor, r: Tensor, grid: Tensor, k: int) -> Tensor:
    """``t' = t·T_{k+1} / (r·Δ_k + T_{k+1})``: the multiplier is measured against what remains of the shared schedule.

    A latent goes the share of its way that this step has if it is taken at pace ``r`` and the remaining ones at pace 1. The last step ends
    at 0, none ends there before it, and pace 1 is the shared schedule. (To divide by the mean of the multipliers so far would say
    nothing: the expected end is then 0 at any pace, and every latent follows the shared schedule.)
    """
    way = grid[k] + (r - 1) * (grid[k] - grid[k + 1])  # T_{k+1} + r·Δ_k, exactly T_k at pace 1
    return torch.where(way > 0, grid[k + 1] * (t / way), torch.zeros_like(t)).minimum(t)


BOUNDARIES: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {"clamp": advanced, "finish": _finish, "normalise": _normalise}
"""``(times, multipliers, shared grid (steps + 1,), step) -> next times``, all float64."""
