"""A transformer over the steps of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robot.learning.blocks import TimeEmbedding, require_positive

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ActionTransformer"]

_POSITION_STD = 0.5  # of fresh position embeddings: steps must be told apart from the first update on
_MODULATION_STD = 0.02


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
        self.layers = nn.ModuleList(_Layer(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, dof)

    def forward(self, x: Tensor, time: Tensor, features: Tensor) -> Tensor:
        condition = self.time(time) + self.features(features)
        h = self.enter(x) + self.position
        for layer in self.layers:
            h = layer(h, condition)
        return self.head(self.norm(h))


class _Layer(nn.Module):
    """Attention and two dense layers, each around a residual; the condition gives six numbers per channel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.queries_keys_values, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        modulation = nn.Linear(width, 6 * width)
        nn.init.normal_(modulation.weight, std=_MODULATION_STD)  # zeros, as is usual, learn nothing for hundreds of updates
        nn.init.zeros_(modulation.bias)
        self.modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        inner: tuple[Callable[[Tensor], Tensor], ...] = (self._attend, self.dense)
        scales, shifts, gates = self.modulation(condition)[:, None].unflatten(-1, (3, 2, -1)).unbind(-3)
        for part, layer in enumerate(inner):
            entry = self.norms[part](h) * (1 + scales[..., part, :]) + shifts[..., part, :]
            h = h + (1 + gates[..., part, :]) * layer(entry)
        return h

    def _attend(self, h: Tensor) -> Tensor:
        split = self.queries_keys_values(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*split.unbind(0))
        return self.merge(attended.transpose(1, 2).flatten(-2))
