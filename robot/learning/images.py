"""Pictures to features: a small convolutional network per camera that reports where it sees what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowrl.errors import ConfigError
from robot.learning.blocks import require_positive
from robot.learning.encoders import ObservationEncoder, Scaled, SensorStats, check_encoder, scaled, sensor_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ImageEncoder"]

_LARGEST_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """Cameras, each through convolutions of stride 2 and a spatial softmax (arXiv:1504.00702, Sec. 5.1), and vectors beside them.

    Attributes:
        cameras: Names of pictures ``(channel, height, width)``.
        vectors: Names of vectors ``(feature,)``, such as the robot's own joints; scaled to [−1, 1].
        history: Frames of each, at least 1.
        channels: Of the convolutions; each halves the picture.
        points: Places per camera that the softmax reports, two coordinates each.
        width: Of the features of all cameras and frames together.
        crop: Side of the square that the network sees, pixels: a random one in training, the middle one otherwise; None for the whole.

    Raises:
        ValueError: If there is no camera or a number is below 1.
    """

    cameras: tuple[str, ...]
    vectors: tuple[str, ...] = ()
    history: int = 1
    channels: tuple[int, ...] = (16, 32, 32)
    points: int = 16
    width: int = 64
    crop: int | None = None

    def __post_init__(self) -> None:
        check_encoder(self.cameras, self.history, self.width)
        require_positive(self, "channels", "points")
        if self.crop is not None and self.crop < 1:
            raise ValueError(f"crop must be at least 1 pixel, got {self.crop}; null sees the whole picture")

    @property
    def needs(self) -> tuple[str, ...]:
        """See :class:`robot.learning.encoders.EncoderConfig`."""
        return (*self.cameras, *self.vectors)

    def build(self, stats: Mapping[str, SensorStats]) -> ObservationEncoder:
        """See :class:`robot.learning.encoders.EncoderConfig`.

        Raises:
            ConfigError: If a sensor is missing or of another kind, or a picture is smaller than the crop.
        """
        cameras = {name: _Camera(self, sensor_shape(stats, name, 3)[0]) for name in self.cameras}
        for name in self.cameras:
            if self.crop is not None and min(stats[name].shape[1:]) < self.crop:
                raise ConfigError(f"crop={self.crop} does not fit into the pictures of {name!r}, which are {stats[name].shape[1:]}")
        vectors = scaled(stats, vectors=self.vectors, history=self.history) if self.vectors else None
        return _ImageEncoder(self, cameras, vectors)


class _ImageEncoder(ObservationEncoder):
    def __init__(self, config: ImageEncoder, cameras: Mapping[str, nn.Module], vectors: Scaled | None) -> None:
        width = config.width + (0 if vectors is None else vectors.width)
        super().__init__(config.needs, config.history, width, 0 if config.crop is None else 2 * len(cameras))
        self.crop = config.crop
        self.cameras, self.vectors = nn.ModuleList(cameras.values()), vectors
        self.names = tuple(cameras)
        self.head = nn.Sequential(nn.Linear(len(cameras) * config.history * 2 * config.points, config.width), nn.SiLU())

    def features(self, frames: Mapping[str, Tensor], draws: Tensor | None) -> Tensor:
        seen = []
        for place, (name, camera) in enumerate(zip(self.names, self.cameras, strict=True)):
            pictures = frames[name]
            if self.crop is not None:
                corner = None if draws is None else draws[:, 2 * place : 2 * place + 2]
                pictures = cropped(pictures, self.crop, corner)
            seen.append(camera(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2]).flatten(1))
        features = self.head(torch.cat(seen, dim=1))
        return features if self.vectors is None else torch.cat([features, self.vectors(frames)], dim=1)


class _Camera(nn.Module):
    """``(frame, channel, height, width)`` in [0, 1] to the expected place of every point, ``(frame, 2·points)`` in [−1, 1]."""

    def __init__(self, config: ImageEncoder, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *config.channels), config.channels, strict=False):
            groups = next(count for count in range(_LARGEST_GROUPS, 0, -1) if outputs % count == 0)
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(groups, outputs), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(config.channels[-1], config.points, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.layers(2 * pictures - 1)
        share = maps.flatten(2).softmax(-1).view_as(maps)
        rows, columns = (torch.linspace(-1, 1, size, device=maps.device, dtype=maps.dtype) for size in maps.shape[-2:])
        return torch.cat([(share.sum(-1) * rows).sum(-1), (share.sum(-2) * columns).sum(-1)], dim=1)


def cropped(pictures: Tensor, side: int, corner: Tensor | None) -> Tensor:
    """A square of every row, the same in all its frames.

    Args:
        pictures: ``(batch, history, channel, height, width)``.
        side: Of the square, pixels.
        corner: Where its upper left corner lies, as shares of the room there is, ``(batch, 2)`` in [0, 1); None is the middle.
    """
    room = torch.tensor([size - side + 1 for size in pictures.shape[-2:]], device=pictures.device)
    if corner is None:
        top, left = ((int(size) - 1) // 2 for size in room)
        return pictures[..., top : top + side, left : left + side]
    starts = (corner.to(pictures.device) * room).long()
    window = torch.arange(side, device=pictures.device)
    rows, columns = ((start[:, None] + window) for start in starts.unbind(1))
    picked = pictures.movedim((0, 3, 4), (0, 1, 2))[
        torch.arange(len(pictures), device=pictures.device)[:, None, None], rows[:, :, None], columns[:, None]
    ]
    return picked.movedim((1, 2), (3, 4))
