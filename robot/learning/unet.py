"""A one-dimensional convolutional U-Net over the steps of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from flowrl.errors import ConfigError
from robot.learning.blocks import TimeEmbedding, require_positive

__all__ = ["ActionUNet"]


@dataclass(frozen=True, kw_only=True)
class ActionUNet:
    """Convolutions over the steps, modulated by time and observation (FiLM), as in Diffusion Policy (arXiv:2303.04137, Sec. III).

    Attributes:
        channels: Per level, fine to coarse; each level but the last halves the number of steps.
        kernel: Steps that a convolution sees, odd.
        groups: Of the group normalisation; every number of channels is a multiple of it, at least twice as large.
        time_width: Of the embedding of time, even.

    Raises:
        ValueError: If a size is out of range.
    """

    channels: tuple[int, ...] = (32, 64)
    kernel: int = 5
    groups: int = 8
    time_width: int = 64

    def __post_init__(self) -> None:
        require_positive(self, "channels", "kernel", "groups", "time_width")
        if self.kernel % 2 == 0 or self.time_width % 2:
            raise ValueError(f"ActionUNet needs an odd kernel and an even time_width, got {self.kernel} and {self.time_width}")
        if any(channels % self.groups or channels == self.groups for channels in self.channels):  # one channel at one step would become 0
            raise ValueError(f"channels must be multiples of groups and larger, got channels={self.channels} and groups={self.groups}")

    def build(self, dof: int, horizon: int, features: int) -> nn.Module:
        """See :class:`robot.learning.blocks.NetworkConfig`.

        Raises:
            ConfigError: If the horizon cannot be halved at every level.
        """
        unit = 2 ** (len(self.channels) - 1)
        if horizon % unit:
            below = horizon // unit * unit
            fitting = " or ".join(str(size) for size in (below, below + unit) if size)
            raise ConfigError(
                f"a U-Net of {len(self.channels)} levels halves the chunk {len(self.channels) - 1} times, which a horizon of {horizon} "
                f"does not allow; set horizon={fitting}, or use fewer channels"
            )
        return _UNet(self, dof, features)


class _UNet(nn.Module):
    def __init__(self, config: ActionUNet, dof: int, features: int) -> None:
        super().__init__()
        condition = config.time_width + features
        block = _BlockMaker(condition, config.kernel, config.groups)
        self.time = TimeEmbedding(config.time_width)
        sizes = [dof, *config.channels]
        pairs = list(pairwise(sizes))
        last = config.channels[-1]
        self.down = nn.ModuleList(block.pair(inputs, outputs) for inputs, outputs in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(outputs, outputs, 3, stride=2, padding=1) for _, outputs in pairs[:-1])
        self.middle = block.pair(last, last)
        self.up = nn.ModuleList(block.pair(2 * outputs, inputs) for inputs, outputs in reversed(pairs[1:]))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(inputs, inputs, 4, stride=2, padding=1) for inputs, _ in reversed(pairs[1:]))
        first = config.channels[0]
        self.leave = block.pair(2 * first, first)
        self.head = nn.Conv1d(first, dof, 1)

    def forward(self, x: Tensor, time: Tensor, features: Tensor) -> Tensor:
        condition = torch.cat([self.time(time), features], dim=-1)
        h, kept = x.transpose(1, 2), []
        for level, pair in enumerate(self.down):
            h = pair(h, condition)
            kept.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        h = self.middle(h, condition)
        for pair, grow in zip(self.up, self.grow, strict=True):
            h = grow(pair(torch.cat([h, kept.pop()], dim=1), condition))
        h = self.leave(torch.cat([h, kept.pop()], dim=1), condition)
        return self.head(h).transpose(1, 2)


@dataclass(frozen=True)
class _BlockMaker:
    condition: int
    kernel: int
    groups: int

    def pair(self, inputs: int, outputs: int) -> nn.Module:
        return _Pair(self.one(inputs, outputs), self.one(outputs, outputs))

    def one(self, inputs: int, outputs: int) -> nn.Module:
        return _Block(inputs, outputs, self)

    def convolution(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv1d(inputs, outputs, self.kernel, padding=self.kernel // 2), nn.GroupNorm(self.groups, outputs), nn.SiLU()
        )


class _Pair(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        return self.second(self.first(h, condition), condition)


class _Block(nn.Module):
    """Two convolutions and a way around them; between them the condition scales and shifts every channel."""

    def __init__(self, inputs: int, outputs: int, maker: _BlockMaker) -> None:
        super().__init__()
        self.enter, self.leave = maker.convolution(inputs, outputs), maker.convolution(outputs, outputs)
        self.film = nn.Sequential(nn.SiLU(), nn.Linear(maker.condition, 2 * outputs))
        self.around = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[..., None].chunk(2, dim=1)
        return self.leave(self.enter(h) * (1 + scale) + shift) + self.around(h)
