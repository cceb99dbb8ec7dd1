"""Dense layers over a whole chunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robot.learning.blocks import TimeEmbedding, require_positive

__all__ = ["ActionMLP"]


@dataclass(frozen=True, kw_only=True)
class ActionMLP:
    """Residual dense layers over the flattened chunk; time and observation enter every layer.

    The fastest on a CPU, and enough for short chunks.

    Attributes:
        width: Of the hidden layers.
        layers: Number of residual layers.
        time_width: Of the embedding of time, even.

    Raises:
        ValueError: If a size is out of range.
    """

    width: int = 256
    layers: int = 3
    time_width: int = 64

    def __post_init__(self) -> None:
        require_positive(self, "width", "layers", "time_width")
        if self.time_width % 2:
            raise ValueError(f"time_width must be even, got {self.time_width}")

    def build(self, dof: int, horizon: int, features: int) -> nn.Module:
        """See :class:`robot.learning.blocks.NetworkConfig`."""
        return _MLP(self, dof, horizon, features)


class _MLP(nn.Module):
    def __init__(self, config: ActionMLP, dof: int, horizon: int, features: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(config.time_width)
        condition = config.time_width + features
        self.enter = nn.Linear(horizon * dof, config.width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(config.width + condition, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
            for _ in range(config.layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.SiLU(), nn.Linear(config.width, horizon * dof))

    def forward(self, x: Tensor, time: Tensor, features: Tensor) -> Tensor:
        condition = torch.cat([self.time(time), features], dim=-1)
        h = self.enter(x.flatten(1))
        for layer in self.layers:
            h = h + layer(torch.cat([h, condition], dim=-1))
        return self.head(h).view_as(x)
