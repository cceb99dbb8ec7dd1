"""The Gymnasium wrapper behind :class:`robot.envs.NoisySensors`; importing it needs Gymnasium."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from zlib import crc32

import gymnasium
import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from robot.envs.base import Frame

__all__ = ["NoisyEnv"]

Amount = float | tuple[float, ...]


class NoisyEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Copies sensors and adds errors to them.

    Attributes:
        clear_frame: The latest frame before copies and errors.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, copies: Mapping[str, str], errors: Mapping[str, tuple[Amount, Amount, Amount]], seed: int
    ) -> None:
        super().__init__(env)
        self._copies, self._seed = dict(copies), seed
        self.observation_space = _space(env, self._copies, errors)
        shapes = {name: self.observation_space[name].shape for name in errors}
        self._errors = {name: tuple(_spread(name, amount, shapes[name]) for amount in amounts) for name, amounts in errors.items()}
        self._sources: dict[str, np.random.Generator] = {}
        self._offsets: dict[str, NDArray[np.float64]] = {}
        self.clear_frame: Frame = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode, and draw its errors."""
        frame, info = self.env.reset(seed=seed, options=options)
        episode = int(info.get("seed", self.np_random.integers(2**31)) if seed is None else seed)
        for name, (bias, offset_std, _) in self._errors.items():
            source = self._sources[name] = np.random.default_rng([self._seed, crc32(name.encode()), episode])
            self._offsets[name] = bias + offset_std * source.standard_normal(bias.shape)
        return self._with_errors(frame), info

    def step(self, action: Any) -> tuple[Frame, Any, bool, bool, dict[str, Any]]:
        """Act."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        return self._with_errors(frame), reward, terminated, truncated, info

    def _with_errors(self, frame: Frame) -> Frame:
        self.clear_frame = frame
        shown = dict(frame) | {new: frame[old] for new, old in self._copies.items()}
        for name, (_, _, std) in self._errors.items():
            error = self._offsets[name] + std * self._sources[name].standard_normal(std.shape)
            shown[name] = (shown[name] + error).astype(np.float32)
        return shown


def _space(env: gymnasium.Env[Any, Any], copies: Mapping[str, str], errors: Mapping[str, Any]) -> spaces.Dict:
    known = dict(env.observation_space.spaces) if isinstance(env.observation_space, spaces.Dict) else {}
    if wrong := [old for old in copies.values() if old not in known]:
        raise ValueError(f"there is no sensor {wrong[0]!r} to copy; sensors: {', '.join(known)}")
    if wrong := [new for new in copies if new in known]:
        raise ValueError(f"a copy cannot be called {wrong[0]!r}: there is a sensor of that name; names taken: {', '.join(known)}")
    known |= {new: known[old] for new, old in copies.items()}
    for name in errors:
        if name not in known:
            raise ValueError(f"there is no sensor {name!r} to add errors to; sensors: {', '.join(known)}")
        if known[name].dtype == np.uint8:
            raise ValueError(f"{name!r} is a camera; errors can be added to sensors that give numbers only")
        known[name] = spaces.Box(-np.inf, np.inf, known[name].shape, np.float32)
    return spaces.Dict(known)


def _spread(name: str, amount: Amount, shape: tuple[int, ...] | None) -> NDArray[np.float64]:
    try:
        return np.broadcast_to(np.asarray(amount, np.float64), shape or ()).copy()
    except ValueError:
        raise ValueError(f"an error of {name!r} must be one number or one for each of {shape}, got {amount}") from None
