"""Frames as latent tokens: what a world-action model imagines, and how it is read from sensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from robot.learning.encoders import check_encoder, joint_scale, scale_by_dimension, sensor_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from robot.learning.encoders import SensorStats

__all__ = ["LatentCodec", "LatentConfig", "StateFrames"]


class LatentConfig(Protocol):
    """Latents as a config describes them."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the sensors that make a frame."""
        ...

    def build(self, stats: Mapping[str, SensorStats]) -> LatentCodec:
        """A codec.

        Args:
            stats: Of at least the sensors that it needs.

        Raises:
            ConfigError: If a sensor is missing or has another kind of frame.
        """
        ...


class LatentCodec(nn.Module, ABC):
    """Frames to latent tokens and back; what it was built from stays with it as buffers.

    Attributes:
        sensors: Names of the sensors that make a frame.
        tokens: Latent tokens of a frame.
        channels: Numbers of a token, about in [−1, 1] or of about unit variance.
    """

    def __init__(self, sensors: tuple[str, ...], tokens: int, channels: int) -> None:
        """Note what it makes."""
        super().__init__()
        self.sensors, self.tokens, self.channels = sensors, tokens, channels

    @abstractmethod
    def encode(self, frames: Mapping[str, Tensor]) -> Tensor:
        """Latents ``(batch, time, token, channel)``.

        Args:
            frames: By sensor ``(batch, time, ...)``; pictures ``(batch, time, channel, height, width)`` in [0, 1].

        Raises:
            ValueError: If a sensor's frames are of another shape than those that the codec was built for.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Frames by sensor ``(batch, time, ...)`` from latents ``(batch, time, token, channel)``."""

    def kept(self, config: LatentConfig) -> LatentConfig:
        """What a model's file keeps of the configuration; it holds this codec's weights, so references to other files are dropped.

        Args:
            config: That built this codec.
        """
        return config


@dataclass(frozen=True, kw_only=True)
class StateFrames:
    """Vectors and keypoints, scaled to [−1, 1] and dealt out in order over the tokens; the last one is filled up with zeros.

    Attributes:
        vectors: Names of vectors ``(feature,)``, scaled coordinate by coordinate.
        keypoints: Names of keypoints ``(point, coordinate)``; all points of a sensor share one scale.
        tokens: Latent tokens of a frame.

    Raises:
        ValueError: If there is no sensor or ``tokens`` < 1.
    """

    vectors: tuple[str, ...] = ()
    keypoints: tuple[str, ...] = ()
    tokens: int = 1

    def __post_init__(self) -> None:
        check_encoder(self.needs, 1, None)
        if self.tokens < 1:
            raise ValueError(f"StateFrames.tokens must be at least 1, got {self.tokens}")

    @property
    def needs(self) -> tuple[str, ...]:
        """See :class:`LatentConfig`."""
        return (*self.vectors, *self.keypoints)

    def build(self, stats: Mapping[str, SensorStats]) -> LatentCodec:
        """See :class:`LatentConfig`."""
        shapes = {name: sensor_shape(stats, name, 2 if name in self.keypoints else 1) for name in self.needs}
        norms = [joint_scale(stats[name]) if name in self.keypoints else scale_by_dimension(stats[name]) for name in self.needs]
        return _StateCodec(shapes, self.tokens, torch.cat([n.offset for n in norms]), torch.cat([n.scale for n in norms]))


class _StateCodec(LatentCodec):
    def __init__(self, shapes: Mapping[str, tuple[int, ...]], tokens: int, offset: Tensor, scale: Tensor) -> None:
        super().__init__(tuple(shapes), tokens, -(-len(offset) // tokens))
        self.shapes = dict(shapes)
        self.register_buffer("offset", offset)
        self.register_buffer("scale", scale)
        self.offset: Tensor
        self.scale: Tensor

    def encode(self, frames: Mapping[str, Tensor]) -> Tensor:
        for name, shape in self.shapes.items():
            if tuple(frames[name].shape[2:]) != tuple(shape):
                raise ValueError(f"a frame of {name} must be {tuple(shape)}, got (batch, time, …) = {tuple(frames[name].shape)}")
        raw = torch.cat([frames[name].float().flatten(2) for name in self.sensors], dim=-1)
        scaled = (raw - self.offset) / self.scale
        filled = nn.functional.pad(scaled, (0, self.tokens * self.channels - scaled.shape[-1]))
        return filled.unflatten(-1, (self.tokens, self.channels))

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        raw = latents.flatten(2)[..., : len(self.offset)] * self.scale + self.offset
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        parts = raw.split(sizes, dim=-1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
