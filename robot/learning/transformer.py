"""A transformer over the steps of a chunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robot.learning.adaptive import AdaptiveLayer
from robot.learning.blocks import TimeEmbedding, require_positive

__all__ = ["ActionTransformer"]

_POSITION_STD = 0.5  # of fresh position embeddings: steps must be told apart from the first update on


@dataclass(frozen=True, kw_only=True)
class ActionTransformer:
    """Attention over the steps; time and observation scale, shift and gate every layer (adaptive layer norm, arXiv:2212.09748).

    Attributes:
        width: Of a token, a multiple of ``heads``, even.
        layers: Number of them.
        heads: Of the attention.

    Raises:
        ValueError: If a size is out of range.
    """

    width: int = 64
    layers: int = 3
    heads: int = 4

    def __post_init__(self) -> None:
        require_positive(self, "width", "layers", "heads")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width must be even and a multiple of heads, got width={self.width} and heads={self.heads}")

    def build(self, dof: int, horizon: int, features: int) -> nn.Module:
        """See :class:`robot.learning.blocks.NetworkConfig`."""
        return _Transformer(self, dof, horizon, features)


class _Transformer(nn.Module):
    def __init__(self, config: ActionTransformer, dof: int, horizon: int, features: int) -> None:
        super().__init__()
        width = config.width
        self.enter = nn.Linear(dof, width)
        self.position = nn.Parameter(_POSITION_STD * torch.randn(horizon, width))
        self.time = TimeEmbedding(width)
        self.features = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(AdaptiveLayer(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, dof)

    def forward(self, x: Tensor, time: Tensor, features: Tensor) -> Tensor:
        condition = (self.time(time) + self.features(features))[:, None]
        h = self.enter(x) + self.position
        for layer in self.layers:
            h = layer(h, condition)
        return self.head(self.norm(h))
