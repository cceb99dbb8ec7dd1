"""Environments that change another one's sensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flowrl.errors import require
from robot.envs.base import EnvSource, Expert, Frame

if TYPE_CHECKING:
    import gymnasium
    from numpy.typing import NDArray

    from robot.types import ActionSpec

__all__ = ["NoisySensors"]


@dataclass(frozen=True, kw_only=True)
class NoisySensors:
    """An environment whose sensors err, so that policies can have different "cameras".

    A noisy sensor shows ``truth + bias + offset + noise``: the offset is drawn once per episode, the noise at every step. The draws depend
    on ``seed``, the sensor's name and the episode's seed only: two policies on the same episode see the same errors, and another noisy
    sensor changes nothing. The expert sees what its own environment's experts see in the simulator.

    Attributes:
        env: The environment.
        copies: New sensors by name, each with the name of the one that it copies: ``{"left_camera": "object", "right_camera": "object"}``.
        std: Standard deviation of the noise by sensor, >= 0, in the sensor's units: one number, or one per feature.
        episode_std: Standard deviation of the episode's offset, likewise.
        bias: Constant error by sensor, likewise.
        seed: Of the errors.

    Raises:
        ValueError: If a standard deviation is negative or not finite.
    """

    env: EnvSource
    copies: Mapping[str, str] = field(default_factory=dict)
    std: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    episode_std: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    bias: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, values in (("std", self.std), ("episode_std", self.episode_std)):
            for name, value in values.items():
                if not (np.isfinite(value).all() and (np.asarray(value) >= 0).all()):
                    raise ValueError(f"{kind} of {name} must be finite and >= 0, got {value}")

    @property
    def name(self) -> str:
        """Of the task."""
        return f"{self.env.name}, noisy sensors"

    @property
    def action(self) -> ActionSpec:
        """What an action means."""
        return self.env.action

    @property
    def max_steps(self) -> int:
        """Control steps after which an episode is truncated."""
        return self.env.max_steps

    def make(self) -> gymnasium.Env[Any, Any]:
        """A fresh environment.

        Raises:
            MissingExtraError: If the simulator is not installed.
            ValueError: If a sensor does not exist, is a camera, or has another number of features.
        """
        require("gymnasium", "robot")
        from robot.envs.noise import NoisyEnv

        return NoisyEnv(
            self.env.make(),
            copies=self.copies,
            errors={name: (self.bias.get(name, 0.0), self.episode_std.get(name, 0.0), self.std.get(name, 0.0)) for name in self._noisy()},
            seed=self.seed,
        )

    def expert(self, seed: int) -> Expert:
        """The environment's own, which looks into the simulator."""
        return _Clear(self.env.expert(seed))

    def problems(self) -> list[str]:
        """The environment's."""
        return self.env.problems()

    def _noisy(self) -> list[str]:
        return sorted({*self.bias, *self.episode_std, *self.std})


class _Clear:
    """Shows an expert the frame before the errors."""

    def __init__(self, expert: Expert) -> None:
        self._expert = expert

    def act(self, env: gymnasium.Env[Any, Any], frame: Frame) -> NDArray[np.float32]:
        """The expert's action, from the frame of the innermost environment that knows it."""
        inner: Any = env
        while hasattr(inner, "env"):
            frame, inner = getattr(inner, "clear_frame", frame), inner.env
        return self._expert.act(env, frame)
