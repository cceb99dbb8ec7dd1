"""A transformer layer whose scale, shift and gate follow a condition (adaptive layer norm, DiT, arXiv:2212.09748, Sec. 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AdaptiveLayer"]

_MODULATION_STD = 0.02


class AdaptiveLayer(nn.Module):
    """Attention and two dense layers, each around a residual; the condition gives six numbers per channel.

    The attention itself is the caller's, so that streams with layers of their own can share it. A condition has the state's axes or ones of
    length 1, which broadcast.
    """

    def __init__(self, width: int, heads: int, *, head_width: int | None = None) -> None:
        """Fresh weights.

        Args:
            width: Of a token.
            heads: Of the attention.
            head_width: Of a head; None for ``width / heads``. Streams that attend to each other must agree on heads and their width.
        """
        super().__init__()
        self.heads, inner = heads, heads * (head_width or width // heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.queries_keys_values, self.merge = nn.Linear(width, 3 * inner), nn.Linear(inner, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        modulation = nn.Linear(width, 6 * width)
        nn.init.normal_(modulation.weight, std=_MODULATION_STD)  # zeros, as is usual, learn nothing for hundreds of updates
        nn.init.zeros_(modulation.bias)
        self.modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Self-attention of one stream: ``(batch, token, width)`` under a condition ``(batch, 1 or token, width)``."""
        modulation = self.modulate(condition)
        attended = nn.functional.scaled_dot_product_attention(*self.attend_with(h, modulation))
        return self.complete(h, attended, modulation)

    def modulate(self, condition: Tensor) -> Sequence[Tensor]:
        """Scales, shifts and gates, each ``(..., 2, width)`` for the two parts, from a condition ``(..., width)``."""
        return self.modulation(condition).unflatten(-1, (3, 2, -1)).unbind(-3)

    def attend_with(self, h: Tensor, modulation: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``(batch, head, token, head_width)``; axes of ``h`` between batch and width are tokens."""
        split = self.queries_keys_values(self._entry(h, modulation, 0)).flatten(1, -2).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    def complete(self, h: Tensor, attended: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        """The layer's output.

        Args:
            h: Its input ``(batch, ..., width)``.
            attended: What its queries found, ``(batch, head, token, head_width)``.
            modulation: What :meth:`modulate` gave.
        """
        gates = modulation[2]
        h = h + (1 + gates[..., 0, :]) * self.merge(attended.transpose(1, 2).flatten(-2)).reshape(h.shape)
        return h + (1 + gates[..., 1, :]) * self.dense(self._entry(h, modulation, 1))

    def _entry(self, h: Tensor, modulation: Sequence[Tensor], part: int) -> Tensor:
        scales, shifts, _ = modulation
        return self.norms[part](h) * (1 + scales[..., part, :]) + shifts[..., part, :]
