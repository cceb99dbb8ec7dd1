"""A Mixture-of-Transformers: frames and actions have weights of their own and attend to each other in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from robot.learning.adaptive import AdaptiveLayer
from robot.learning.blocks import TIME_SCALE, TimeEmbedding, require_positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrl.shapes import Time
    from robot.world.layout import Layout

__all__ = ["JointTransformer", "MixtureOfTransformers", "Seen"]

_POSITION_STD = 0.5  # of fresh position embeddings: tokens must be told apart from the first update on

Seen: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of the frames in every layer, each ``(batch, head, token, head_width)``: all that actions see of them."""


@dataclass(frozen=True, kw_only=True)
class MixtureOfTransformers:
    """Two transformers joined by shared self-attention (arXiv:2411.04996; as a world-action model arXiv:2605.07794).

    Attributes:
        video_width: Of a frame's token, even.
        action_width: Of an action's token, even.
        layers: Of each stream.
        heads: Of the shared attention.
        head_width: Of a head.
        video_sees_action: Whether frames attend to actions. Where they do not, frames whose times do not move need no new evaluation.
        frame_attention: ``full``, or ``causal``: a frame attends to itself and to earlier ones. From the second layer on later frames still
            reach it through the actions, unless ``video_sees_action`` is false.

    Raises:
        ValueError: If a size is out of range.
    """

    video_width: int = 64
    action_width: int = 64
    layers: int = 4
    heads: int = 4
    head_width: int = 16
    video_sees_action: bool = True
    frame_attention: Literal["full", "causal"] = "full"

    def __post_init__(self) -> None:
        require_positive(self, "video_width", "action_width", "layers", "heads", "head_width")
        if self.video_width % 2 or self.action_width % 2:
            raise ValueError(f"widths must be even, got video_width={self.video_width} and action_width={self.action_width}")

    def build(self, layout: Layout, *, observed: int = 1, features: int = 0) -> JointTransformer:
        """A network with fresh weights from torch's global generator.

        Args:
            layout: Of its states.
            observed: Clean frames that it is shown.
            features: Length of what else it is told.
        """
        return JointTransformer(self, layout, observed=observed, features=features)


class JointTransformer(nn.Module):
    """``(packed state, times, observed frames, features) -> packed velocity``; every frame has its own time, the actions have theirs.

    Observed frames are tokens of the video stream at time 0.
    """

    def __init__(self, config: MixtureOfTransformers, layout: Layout, *, observed: int, features: int) -> None:
        """Fresh weights; see :meth:`MixtureOfTransformers.build`."""
        super().__init__()
        self.layout, self.observed, self.video_sees_action = layout, observed, config.video_sees_action
        count = observed + layout.frames
        self.video = _Stream(config, config.video_width, layout.channels, features)
        self.action = _Stream(config, config.action_width, layout.dof, features)
        self.frame_position = nn.Parameter(_POSITION_STD * torch.randn(count, 1, config.video_width))
        self.token_position = nn.Parameter(_POSITION_STD * torch.randn(layout.tokens, config.video_width))
        self.action_position = nn.Parameter(_POSITION_STD * torch.randn(layout.horizon, config.action_width))
        frame = torch.arange(count).repeat_interleave(layout.tokens)
        self.register_buffer("order", frame if config.frame_attention == "causal" else None, persistent=False)
        self.order: Tensor | None

    def forward(self, x: Tensor, t: Time, observed: Tensor, features: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """The velocity.

        Args:
            x: Packed state ``(batch, frame + 1, width)``.
            t: Noise level, ``()``, ``(batch,)`` or ``(batch, frame + 1)``.
            observed: Latents of the frames seen, ``(batch, observed, token, channel)``, oldest first.
            features: What else is known, ``(batch, feature)``.
            hidden: ``(batch, frame)`` bool, predicted frames that the actions must not attend to; to measure what masking by noise leaves.

        Returns:
            Packed like ``x``.
        """
        times = self.layout.row_times(t, x)
        if not self.video_sees_action:
            latents, seen = self.watch(x, times, observed, features)
            return self.layout.pack(latents, self.act(x, times, seen, features, hidden))
        h, condition = self._frames(x, times, observed, features)
        g, told = self._chunk(x, times, features)
        cut = self._cut(hidden)
        for video, action in zip(self.video.stack, self.action.stack, strict=True):
            mine, theirs = video.modulate(condition), action.modulate(told)
            of_frames, of_chunk = video.attend_with(h, mine), action.attend_with(g, theirs)
            both = tuple(torch.cat(pair, dim=2) for pair in zip(of_frames[1:], of_chunk[1:], strict=True))
            h = video.complete(h, _attend(of_frames[0], both, self._causal(both)), mine)
            g = action.complete(g, _attend(of_chunk[0], both, cut), theirs)
        return self.layout.pack(self.video.leave(h)[:, self.observed :], self.action.leave(g)[:, 0])

    def watch(
        self, x: Tensor, times: Tensor, observed: Tensor, features: Tensor | None = None, *, kept: Seen | None = None, start: int = 0
    ) -> tuple[Tensor, Seen]:
        """The video stream alone, where it does not attend to actions: velocities of the frames, and what actions see of them.

        Args:
            x: Packed state.
            times: ``(batch, frame + 1)``.
            observed: See :meth:`forward`.
            features: See :meth:`forward`.
            kept: What an earlier call gave, of which the frames before ``start`` still hold: under causal attention they depend on none
                after them.
            start: The first frame to evaluate, observed ones counted.

        Returns:
            Velocities of the predicted frames from ``start`` on ``(batch, frame, token, channel)``, and :data:`Seen` of all frames.
        """
        h, condition = (part[:, start:] for part in self._frames(x, times, observed, features))
        done, seen = start * self.layout.tokens, []
        for index, layer in enumerate(self.video.stack):
            modulation = layer.modulate(condition)
            queries, *found = layer.attend_with(h, modulation)
            if kept is not None and done:
                found = [torch.cat([old[:, :, :done], new], dim=2) for old, new in zip(kept[index], found, strict=True)]
            h = layer.complete(h, _attend(queries, found, self._causal(found, done)), modulation)
            seen.append((found[0], found[1]))
        return self.video.leave(h)[:, max(self.observed - start, 0) :], tuple(seen)

    def act(self, x: Tensor, times: Tensor, seen: Seen, features: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """The action stream alone, given what it sees of the frames: velocities ``(batch, horizon, dof)``; arguments as above."""
        g, told = self._chunk(x, times, features)
        cut = self._cut(hidden)
        for layer, found in zip(self.action.stack, seen, strict=True):
            modulation = layer.modulate(told)
            queries, *own = layer.attend_with(g, modulation)
            both = tuple(torch.cat(pair, dim=2) for pair in zip(found, own, strict=True))
            g = layer.complete(g, _attend(queries, both, cut), modulation)
        return self.action.leave(g)[:, 0]

    def _frames(self, x: Tensor, times: Tensor, observed: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens of all frames ``(batch, observed + frame, token, width)`` and what each frame is told ``(…, 1, width)``."""
        h = self.video.enter(torch.cat([observed, self.layout.latents(x)], dim=1)) + self.frame_position + self.token_position
        clean = times.new_zeros(len(times), self.observed)
        return h, self.video.told(torch.cat([clean, times[:, :-1]], dim=1), features)

    def _chunk(self, x: Tensor, times: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        g = self.action.enter(self.layout.actions(x)) + self.action_position
        return g[:, None], self.action.told(times[:, -1:], features)

    def _causal(self, found: Sequence[Tensor], done: int = 0) -> Tensor | None:
        """Which keys the frames' tokens from ``done`` on may attend to, ``(token, key)``; actions are always among them."""
        if self.order is None:
            return None
        mask = self.order[done:, None] >= self.order
        return nn.functional.pad(mask, (0, found[0].shape[2] - len(self.order)), value=True)

    def _cut(self, hidden: Tensor | None) -> Tensor | None:
        """Which keys actions may attend to, ``(batch, 1, 1, key)``."""
        if hidden is None:
            return None
        frames = nn.functional.pad(~hidden, (self.observed, 0), value=True).repeat_interleave(self.layout.tokens, dim=1)
        return nn.functional.pad(frames, (0, self.layout.horizon), value=True)[:, None, None]


class _Stream(nn.Module):
    """What a stream has of its own: its way in, its layers, its way out."""

    def __init__(self, config: MixtureOfTransformers, width: int, channels: int, features: int) -> None:
        super().__init__()
        self.enter = nn.Linear(channels, width)
        self.time = TimeEmbedding(width)
        self.features = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width)) if features else None
        self.layers = nn.ModuleList(AdaptiveLayer(width, config.heads, head_width=config.head_width) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, channels)

    @property
    def stack(self) -> list[AdaptiveLayer]:
        """Its layers."""
        return cast("list[AdaptiveLayer]", list(self.layers))

    def told(self, times: Tensor, features: Tensor | None) -> Tensor:
        """The condition of each group of tokens, ``(batch, group, 1, width)``."""
        told = self.time(TIME_SCALE * times)[:, :, None]
        return told if self.features is None else told + self.features(features)[:, None, None]

    def leave(self, h: Tensor) -> Tensor:
        """Velocities."""
        return self.head(self.norm(h))


def _attend(queries: Tensor, found: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    return nn.functional.scaled_dot_product_attention(queries, found[0], found[1], attn_mask=mask)
