"""The typed boundary of a policy: what it sees, what it returns, in which units, names and rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flowrl.shapes import RandomSource

__all__ = ["ActionChunk", "ActionSpec", "Observation", "Policy", "Rotation"]

Rotation = Literal["none", "delta", "rot6d", "axis_angle", "euler", "quaternion"]
"""How a rotation stands in an action. Only ``none``, ``delta`` (small increments) and ``rot6d`` can be averaged."""


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """What the numbers of an action mean; two policies can be composed only where these agree.

    Attributes:
        names: Of the dimensions, in order, such as ``("x", "y", "gripper")``.
        control_rate_hz: Control steps per second, > 0.
        rotation: How rotations are written among the dimensions.

    Raises:
        ValueError: If there is no name, a name repeats, or the rate is not positive.
    """

    names: tuple[str, ...]
    control_rate_hz: float
    rotation: Rotation = "none"

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"an action needs dimensions with names of their own, got {self.names}")
        if not self.control_rate_hz > 0:
            raise ValueError(f"control_rate_hz must be > 0, got {self.control_rate_hz}; Robomimic tasks run at 20, PushT at 10")

    @property
    def dof(self) -> int:
        """Number of dimensions."""
        return len(self.names)

    @property
    def control_period_s(self) -> float:
        """Seconds per control step."""
        return 1 / self.control_rate_hz


@dataclass(frozen=True)
class Observation:
    """The latest frames of every sensor, physical units, oldest frame first.

    Attributes:
        values: By name: vectors ``(batch, history, feature)``, keypoints ``(batch, history, point, coordinate)``, pictures
            ``(batch, history, channel, height, width)`` in [0, 1].

    Raises:
        ValueError: If there are no values, or they differ in batch size or history.
    """

    values: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        shapes = {name: tuple(value.shape) for name, value in self.values.items()}
        if not shapes or any(len(shape) < 3 for shape in shapes.values()) or len({shape[:2] for shape in shapes.values()}) > 1:  # noqa: PLR2004
            raise ValueError(f"an observation needs tensors (batch, history, ...) that share their first two axes, got {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Observation:
        """The given rows of every sensor."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.long)
        return Observation(
            {name: value[index if isinstance(index, slice) else index.to(value.device)] for name, value in self.values.items()}
        )

    @property
    def history(self) -> int:
        """Frames per sensor."""
        return int(next(iter(self.values.values())).shape[1])

    def only(self, names: Sequence[str], history: int | None = None) -> Observation:
        """Some sensors, and their latest frames.

        Args:
            names: Which sensors.
            history: Number of frames; None for all.

        Raises:
            ValueError: If a sensor is missing or there are fewer frames.
        """
        if missing := [name for name in names if name not in self.values]:
            raise ValueError(f"the observation has no {', '.join(missing)}; it has {', '.join(sorted(self.values))}")
        if history is not None and history > self.history:
            raise ValueError(f"the policy needs {history} frames, the observation holds {self.history}")
        start = 0 if history is None else self.history - history
        return Observation({name: self.values[name][:, start:] for name in names})

    def to(self, device: torch.device | str) -> Observation:
        """On another device."""
        return Observation({name: value.to(device) for name, value in self.values.items()})


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """Actions for consecutive control steps, physical units.

    Attributes:
        values: ``(batch, horizon, dof)``.
        spec: What the dimensions mean.
        first: Index along the horizon of the present control step; entries before it lie in the past.
        disagreement: ``(batch,)``, how much composed policies disagreed (nats); None for a single policy.
        latency_s: Seconds spent in each member's network, by the member's name; empty where not measured.

    Raises:
        ValueError: If the shape does not fit the names, or ``first`` lies outside the horizon.
    """

    values: Tensor
    spec: ActionSpec
    first: int = 0
    disagreement: Tensor | None = None
    latency_s: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[-1] != self.spec.dof:  # noqa: PLR2004
            raise ValueError(f"a chunk of {self.spec.names} must be (batch, horizon, {self.spec.dof}), got {tuple(self.values.shape)}")
        if not 0 <= self.first < self.values.shape[1]:
            raise ValueError(f"first must lie inside the horizon of {self.values.shape[1]}, got {self.first}")

    def to_execute(self, steps: int) -> Tensor:
        """The actions of the next ``steps`` control steps, ``(batch, steps, dof)``.

        Raises:
            ValueError: If the chunk does not reach that far.
        """
        left = self.values.shape[1] - self.first
        if not 1 <= steps <= left:
            raise ValueError(f"a chunk of {self.values.shape[1]} that begins at {self.first} has {left} actions left, not {steps}")
        return self.values[:, self.first : self.first + steps]


class Policy(Protocol):
    """Observation in, chunk of actions out."""

    @property
    def action(self) -> ActionSpec:
        """What its actions mean."""
        ...

    @property
    def sensors(self) -> tuple[str, ...]:
        """Names of the sensors that it needs."""
        ...

    @property
    def history(self) -> int:
        """Frames of every sensor that it needs, at least 1."""
        ...

    @property
    def execute(self) -> int:
        """Actions of a chunk to execute before the next one is asked for."""
        ...

    def act(self, observation: Observation, generator: RandomSource = None) -> ActionChunk:
        """The next chunk for every row.

        Args:
            observation: At least this policy's sensors and history.
            generator: Source of the noise; a sequence gives each row its own, so that a row's actions do not depend on its neighbours.
        """
        ...
