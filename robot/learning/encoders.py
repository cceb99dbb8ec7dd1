"""Observations to features: vectors, keypoints, pictures; each normalised by the statistics of the demonstrations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from flowrl.errors import ConfigError
from robot.normalise import NormStats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from robot.types import Observation

__all__ = ["EncoderConfig", "KeypointEncoder", "ObservationEncoder", "SensorStats", "StateEncoder", "joint_scale", "scale_by_dimension"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SensorStats:
    """What the demonstrations show of one sensor.

    Attributes:
        shape: Of one frame as a policy sees it: ``(feature,)``, ``(point, coordinate)``, ``(channel, height, width)``.
        low: Smallest value, of that shape; None for pictures, which lie in [0, 1], and where unknown yet.
        high: Largest value.
    """

    shape: tuple[int, ...]
    low: Tensor | None = None
    high: Tensor | None = None

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest values; −1 and 1 where unknown."""
        low = -torch.ones(self.shape) if self.low is None else self.low
        return low, torch.ones(self.shape) if self.high is None else self.high


class EncoderConfig(Protocol):
    """An encoder as a config describes it."""

    @property
    def history(self) -> int:
        """Frames of every sensor that it needs."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the sensors that it needs."""
        ...

    def build(self, stats: Mapping[str, SensorStats]) -> ObservationEncoder:
        """An encoder with fresh weights.

        Args:
            stats: Of at least the sensors that it needs.

        Raises:
            ConfigError: If a sensor is missing or has another kind of frame.
        """
        ...


class ObservationEncoder(nn.Module, ABC):
    """``Observation -> (batch, width)``; what it was built from stays with it as buffers.

    Attributes:
        sensors: Names of the sensors that it needs.
        history: Frames of every sensor that it needs.
        width: Length of the features.
        draws: Uniform random numbers per row that training adds (random crops); 0 where it adds none.
    """

    def __init__(self, sensors: tuple[str, ...], history: int, width: int, draws: int = 0) -> None:
        """Note what it needs."""
        super().__init__()
        self.sensors, self.history, self.width, self.draws = sensors, history, width, draws

    @abstractmethod
    def features(self, frames: Mapping[str, Tensor], draws: Tensor | None) -> Tensor:
        """``(batch, width)`` from frames ``(batch, history, ...)`` in float32."""

    def forward(self, observation: Observation, draws: Tensor | None = None) -> Tensor:
        """Features of the latest frames.

        Args:
            observation: At least this encoder's sensors and history.
            draws: ``(batch, draws)`` in [0, 1), in training only.

        Raises:
            ValueError: If a sensor is missing or there are too few frames.
        """
        return self.features({name: value.float() for name, value in observation.only(self.sensors, self.history).values.items()}, draws)


class Scaled(nn.Module):
    """Frames scaled to [−1, 1] by the range of the demonstrations, flattened and put one after the other."""

    def __init__(self, stats: Mapping[str, NormStats], shapes: Mapping[str, tuple[int, ...]], history: int) -> None:
        """Keep offsets and scales, of one flattened frame each."""
        super().__init__()
        self.sensors = tuple(stats)
        self.width = history * sum(torch.Size(shapes[name]).numel() for name in stats)
        for place, stat in enumerate(stats.values()):
            self.register_buffer(f"offset_{place}", stat.offset)
            self.register_buffer(f"scale_{place}", stat.scale)

    def forward(self, frames: Mapping[str, Tensor]) -> Tensor:
        """``(batch, width)``."""
        parts = []
        for place, name in enumerate(self.sensors):
            stat = (self.get_buffer(f"{part}_{place}") for part in ("offset", "scale"))
            offset, scale = stat
            parts.append(((frames[name].flatten(2) - offset) / scale).flatten(1))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True, kw_only=True)
class StateEncoder:
    """Vectors, scaled to [−1, 1]; the features are the values themselves, or two layers over them.

    Attributes:
        sensors: Names of vectors ``(feature,)``.
        history: Frames of each, at least 1.
        width: Of the two layers; None passes the values on.

    Raises:
        ValueError: If there is no sensor or a number is below 1.
    """

    sensors: tuple[str, ...]
    history: int = 1
    width: int | None = None

    def __post_init__(self) -> None:
        check_encoder(self.sensors, self.history, self.width)

    @property
    def needs(self) -> tuple[str, ...]:
        """See :class:`EncoderConfig`."""
        return self.sensors

    def build(self, stats: Mapping[str, SensorStats]) -> ObservationEncoder:
        """See :class:`EncoderConfig`."""
        return _VectorEncoder(self.needs, self.history, scaled(stats, vectors=self.sensors, history=self.history), self.width)


@dataclass(frozen=True, kw_only=True)
class KeypointEncoder:
    """Keypoints and vectors, scaled to [−1, 1]; all points and coordinates of a sensor share one scale, so that distances keep their ratio.

    Attributes:
        keypoints: Names of keypoints ``(point, coordinate)``.
        vectors: Names of vectors ``(feature,)`` beside them, such as the agent's own position.
        history: Frames of each, at least 1.
        width: Of two layers over the values; None passes the values on.

    Raises:
        ValueError: If there are no keypoints or a number is below 1.
    """

    keypoints: tuple[str, ...]
    vectors: tuple[str, ...] = ()
    history: int = 1
    width: int | None = None

    def __post_init__(self) -> None:
        check_encoder(self.keypoints, self.history, self.width)

    @property
    def needs(self) -> tuple[str, ...]:
        """See :class:`EncoderConfig`."""
        return (*self.keypoints, *self.vectors)

    def build(self, stats: Mapping[str, SensorStats]) -> ObservationEncoder:
        """See :class:`EncoderConfig`."""
        return _VectorEncoder(
            self.needs, self.history, scaled(stats, vectors=self.vectors, points=self.keypoints, history=self.history), self.width
        )


class _VectorEncoder(ObservationEncoder):
    def __init__(self, sensors: tuple[str, ...], history: int, values: Scaled, width: int | None) -> None:
        super().__init__(sensors, history, values.width if width is None else width)
        self.values = values
        self.layers = nn.Identity() if width is None else nn.Sequential(nn.Linear(values.width, width), nn.SiLU(), nn.Linear(width, width))

    def features(self, frames: Mapping[str, Tensor], draws: Tensor | None) -> Tensor:
        del draws
        return self.layers(self.values(frames))


def scaled(stats: Mapping[str, SensorStats], *, vectors: tuple[str, ...] = (), points: tuple[str, ...] = (), history: int = 1) -> Scaled:
    """Scaling of vectors by dimension, and of keypoints by one scale per sensor.

    Raises:
        ConfigError: If a sensor is missing or shows another kind of frame.
    """
    shapes = {name: sensor_shape(stats, name, axes) for names, axes in ((points, 2), (vectors, 1)) for name in names}
    norms = {name: joint_scale(stats[name]) if name in points else scale_by_dimension(stats[name]) for name in shapes}
    return Scaled(norms, shapes, history)


def sensor_shape(stats: Mapping[str, SensorStats], name: str, axes: int) -> tuple[int, ...]:
    """The shape of a sensor's frames.

    Raises:
        ConfigError: If the sensor is missing, or its frames have another number of axes.
    """
    if name not in stats:
        raise ConfigError(f"the encoder needs the sensor {name!r}, the demonstrations have {', '.join(sorted(stats))}")
    if len(stats[name].shape) != axes:
        kinds = {1: "a vector (feature,)", 2: "keypoints (point, coordinate)", 3: "pictures (channel, height, width)"}
        raise ConfigError(f"the encoder expects {kinds[axes]} of the sensor {name!r}, its frames are {stats[name].shape}")
    return stats[name].shape


def check_encoder(sensors: tuple[str, ...], history: int, width: int | None) -> None:
    """Refuse an encoder without sensors or with a number below 1.

    Raises:
        ValueError: If it is one.
    """
    if not sensors or len(set(sensors)) != len(sensors):
        raise ValueError(f"an encoder needs sensors with names of their own, got {sensors}")
    if history < 1 or (width is not None and width < 1):
        raise ValueError(f"an encoder needs history >= 1 and width >= 1 or null, got {history} and {width}")


def scale_by_dimension(stats: SensorStats) -> NormStats:
    """Every coordinate of a vector to [−1, 1] by its own range."""
    return NormStats.min_max(torch.stack(stats.bounds()))


def joint_scale(stats: SensorStats) -> NormStats:
    """The middle of every coordinate, and one scale for all points: the largest half range."""
    low, high = (bound.flatten(0, -2) for bound in stats.bounds())
    ends = NormStats.min_max(torch.stack([low.amin(0), high.amax(0)]))
    points = stats.shape[0]
    return NormStats(ends.offset.repeat(points), ends.scale.amax().expand(points * stats.shape[1]))
