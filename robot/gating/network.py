"""The network of the gate: noisy latents and their times to one number per latent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robot.learning.blocks import TIME_SCALE, TimeEmbedding

if TYPE_CHECKING:
    from robot.gating.record import View

__all__ = ["GateNetwork"]

_SQUEEZE = 4
_GROWTH = 2  # of the layers' feed-forward part


class GateNetwork(nn.Module):
    """A gating policy network as in arXiv:2605.07794, reconstructed.

    Tokens are encoded and pooled over space; a squeeze-and-excite gate weighs a frame's features, a learned gate mixes in the observed
    frame; layers of attention over frames; then the times; last, a head over a pooled summary and all frames, whose last layer is zero.
    """

    def __init__(self, frames: int, tokens: int, channels: int, *, columns: int, width: int, layers: int, heads: int) -> None:
        """Fresh weights from torch's global generator.

        Args:
            frames: Predicted latents.
            tokens: Of a latent.
            channels: Numbers of a token.
            columns: Numbers to return.
            width: Of a frame's features, even and a multiple of ``heads``.
            layers: Of attention over frames.
            heads: Of the attention.
        """
        super().__init__()
        self.enter = nn.Linear(channels, width)
        self.place = nn.Parameter(torch.randn(tokens, width) / 2)  # tokens of a frame mean different things
        self.encode = nn.Sequential(nn.SiLU(), nn.Linear(width, width))
        self.pool = nn.Linear(2 * width, width)
        self.excite = nn.Sequential(nn.Linear(width, width // _SQUEEZE), nn.SiLU(), nn.Linear(width // _SQUEEZE, width), nn.Sigmoid())
        self.fuse = nn.Sequential(nn.Linear(2 * width, width), nn.Sigmoid())
        self.position = nn.Parameter(torch.randn(frames, width) / 2)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.time = TimeEmbedding(width)
        self.join = nn.Sequential(nn.LayerNorm(3 * width), nn.Linear(3 * width, width))
        self.attention = nn.Linear(width, 1)
        self.head = nn.Sequential(nn.Linear((frames + 1) * width, width), nn.SiLU())
        self.last = nn.Linear(width, columns)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, view: View) -> Tensor:
        """``(batch, column)``, zero for fresh weights."""
        both = self._pooled(torch.cat([view.observed[:, None], view.latents], dim=1))
        seen, h = both[:, :1].expand_as(both[:, 1:]), both[:, 1:]
        h = torch.lerp(seen, h, self.fuse(torch.cat([h, seen], dim=-1))) + self.position
        for layer in self.layers:
            h = layer(h)
        h = self.join(torch.cat([h, self._times(view, h)], dim=-1))
        summary = (self.attention(h).softmax(dim=1) * h).sum(1, keepdim=True)
        return self.last(self.head(torch.cat([summary, h], dim=1).flatten(1)))

    def _pooled(self, frames: Tensor) -> Tensor:
        """Latents ``(batch, frame, token, channel)`` to features ``(batch, frame, width)``."""
        h = self.encode(self.enter(frames.to(self.place.dtype)) + self.place)
        h = self.pool(torch.cat([h.mean(2), h.amax(2)], dim=-1))
        return h * self.excite(h)

    def _times(self, view: View, like: Tensor) -> Tensor:
        """Embedding of every frame's time beside that of the actions', ``(batch, frame, 2·width)``."""
        own = view.times.to(like.dtype)
        clock = view.action_time.to(like.dtype)[:, None].expand_as(own)
        return self.time(TIME_SCALE * torch.stack([own, clock], dim=-1)).flatten(-2)


class _Layer(nn.Module):
    """Attention over frames and a feed-forward part, each after a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask, self.answer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, _GROWTH * width), nn.SiLU(), nn.Linear(_GROWTH * width, width))

    def forward(self, h: Tensor) -> Tensor:
        queries, keys, values = self.ask(self.before(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values)
        h = h + self.answer(attended.transpose(1, 2).flatten(2))
        return h + self.feed(self.between(h))
