"""Where a composition is evaluated: noise levels that every member's network has seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from flowrl.flow import VariancePreserving, shifted_times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robot.composition.panel import Seat

__all__ = ["composition_times"]


def composition_times(seats: Sequence[Seat], steps: int) -> list[float]:
    """Noise levels from the largest that all members know to exactly 0, linear in ``t``.

    A network of integer timesteps owns the grid: every level is one of its timesteps, and flows, whose time is continuous, follow
    exactly. Of several such networks the one with the fewest timesteps owns it; the finer ones take their nearest.

    Args:
        seats: The members.
        steps: Denoising steps, at least 1; at most the owner's timesteps are used.

    Returns:
        ``steps + 1`` numbers, decreasing.

    Raises:
        ValueError: If ``steps`` < 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}; 10 is usual for action chunks")
    start = min(float(place.alignment.composition_time(_double(place.member.largest_time))) for place in seats)
    wanted = start * shifted_times(steps)
    discrete = [place for place in seats if isinstance(place.member.path, VariancePreserving)]
    if not discrete:
        return [float(t) for t in wanted]
    owner = min(discrete, key=lambda place: len(_levels(place)))
    levels = _levels(owner)
    levels = levels[levels <= start + 1e-9]
    chosen = _nearest_distinct(levels, wanted[:-1])
    return [float(levels[index]) for index in chosen] + [0.0]


def _levels(place: Seat) -> Tensor:
    """The composition's noise level at each of a discrete member's timesteps, increasing."""
    path = cast("VariancePreserving", place.member.path)
    return place.alignment.composition_time(path.times())


def _nearest_distinct(levels: Tensor, wanted: Tensor) -> list[int]:
    """Indices of the levels nearest to the wanted ones, decreasing and all different."""
    count = min(len(wanted), len(levels))
    if count < len(wanted):
        return list(range(len(levels) - 1, -1, -1))
    nearest = (levels[:, None] - wanted[None]).abs().argmin(0).tolist()
    for place in range(count - 2, -1, -1):  # from the data end: each above the next
        nearest[place] = max(nearest[place], nearest[place + 1] + 1)
    for place in range(count):  # from the noise end: none beyond the schedule
        nearest[place] = min(nearest[place], len(levels) - 1 - place)
    return [int(index) for index in nearest]


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
