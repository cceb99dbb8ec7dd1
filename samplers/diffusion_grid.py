"""The grid of a diffusion model that joined the rectified flow by a change of coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.flow import VariancePreserving
from samplers.grids import checked_times

__all__ = ["DiffusionGrid"]


@dataclass(frozen=True, kw_only=True)
class DiffusionGrid:
    """Noise levels of the timesteps that DDIM takes ("leading" spacing, arXiv:2305.08891, Table 2), then 0.

    The defaults are those of Stable Diffusion 1.5, 2 and XL, whose β are the squares of a linear range (arXiv:2112.10752). Such a grid
    starts below 1, where the network was never trained. For other schedules take the model's ``default_times`` in an
    :class:`ExplicitGrid`.

    Attributes:
        steps: Number of steps, from 1 to ``timesteps``.
        timesteps: Of the training schedule.
        beta_start: β of the first timestep.
        beta_end: β of the last.
        offset: Added to every timestep.

    Raises:
        ValueError: If the number of steps or the β are out of range.
    """

    steps: int
    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    offset: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.timesteps:
            raise ValueError(f"steps must be at least 1 and at most {self.timesteps}, got {self.steps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"need 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}")
        checked_times(self.times())

    def times(self) -> Tensor:
        """Noise levels, float64 ``(steps + 1,)``, from below 1 to exactly 0."""
        beta = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.timesteps, dtype=torch.float64) ** 2
        levels = VariancePreserving((1 - beta).cumprod(0)).times()
        taken = torch.arange(self.steps).flip(0) * (self.timesteps // self.steps) + self.offset
        return torch.cat([levels[taken.clamp(max=self.timesteps - 1)], levels.new_zeros(1)])
