"""Grids of noise levels, from noise to data, and the check that every sampler makes of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flowrl.flow import dynamic_shift, shifted_times

__all__ = ["DynamicShiftGrid", "ExplicitGrid", "ShiftedGrid", "TimeGrid", "checked_times"]


@runtime_checkable
class TimeGrid(Protocol):
    """Where a sampler evaluates the field."""

    def times(self) -> Tensor:
        """Noise levels, float64 ``(steps + 1,)``, strictly decreasing; per token see :class:`samplers.PerTokenSchedule`."""
        ...


def checked_times(times: Tensor) -> Tensor:
    """Refuse times that are no grid.

    Args:
        times: ``(steps + 1,)``.

    Returns:
        The same, float64, on the CPU.

    Raises:
        ValueError: If there are fewer than two, one is not finite, they do not strictly decrease, or they leave [0, 1].
    """
    grid = torch.as_tensor(times, dtype=torch.float64).cpu()
    if grid.ndim != 1 or not len(grid.diff()):
        raise ValueError(f"a grid has one axis and at least two times (one step), got shape {tuple(grid.shape)}")
    # Compared in float32, in which the samplers step: there, too, no two times may coincide.
    if not bool(torch.isfinite(grid).all() and (grid.float().diff() < 0).all()):
        raise ValueError(f"the times of a grid must strictly decrease from noise (1) to data (0), got {grid.tolist()}")
    if grid[0] > 1 or grid[-1] < 0:
        raise ValueError(f"the times of a grid must lie in [0, 1], got {grid[0].item()} … {grid[-1].item()}")
    return grid


@dataclass(frozen=True, kw_only=True)
class ShiftedGrid:
    """A linear grid moved towards the noise end by a constant shift, see :func:`flowrl.flow.shift_time`.

    Attributes:
        steps: Number of steps, at least 1.
        shift: > 0; 1 is the linear grid, SD3 and the FLUX runs of DanceGRPO, MixGRPO and G²RPO use 3.

    Raises:
        ValueError: If ``steps`` < 1 or ``shift`` <= 0.
    """

    steps: int
    shift: float = 1.0

    def __post_init__(self) -> None:
        checked_times(self.times())

    def times(self) -> Tensor:
        """Noise levels, float64 ``(steps + 1,)``, from exactly 1 to exactly 0."""
        return shifted_times(self.steps, self.shift)


@dataclass(frozen=True, kw_only=True)
class DynamicShiftGrid:
    """A linear grid moved by the shift that diffusers computes from the resolution (FLUX), see :func:`flowrl.flow.dynamic_shift`.

    Attributes:
        steps: Number of steps, at least 1.
        tokens: Image tokens that the transformer sees, such as 4096 for 1024 × 1024.
        base_tokens: Where the log-shift is ``base_shift``.
        max_tokens: Where the log-shift is ``max_shift``.
        base_shift: Log-shift at ``base_tokens``.
        max_shift: Log-shift at ``max_tokens``.

    Raises:
        ValueError: If ``steps`` < 1, ``tokens`` < 1 or ``base_tokens`` equals ``max_tokens``.
    """

    steps: int
    tokens: int
    base_tokens: int = 256
    max_tokens: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15

    def __post_init__(self) -> None:
        checked_times(self.times())

    def times(self) -> Tensor:
        """Noise levels, float64 ``(steps + 1,)``, from exactly 1 to exactly 0."""
        shift = dynamic_shift(
            self.tokens,
            base_tokens=self.base_tokens,
            max_tokens=self.max_tokens,
            base_shift=self.base_shift,
            max_shift=self.max_shift,
        )
        return shifted_times(self.steps, shift)


@dataclass(frozen=True, kw_only=True)
class ExplicitGrid:
    """Given noise levels, such as a pipeline's own.

    Attributes:
        values: Noise levels, first in (0, 1], strictly decreasing, last >= 0.

    Raises:
        ValueError: If they are no such grid.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        checked_times(self.times())

    def times(self) -> Tensor:
        """The values, float64 ``(steps + 1,)``."""
        return torch.tensor(self.values, dtype=torch.float64)
