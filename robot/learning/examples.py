"""Demonstrations in closed form, for trying out and testing learning without a simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robot.demonstrations.data import Demonstrations, Episode
from robot.types import ActionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TwoPaths", "TwoWays", "seen_at"]

_SIDE, _BAR = 16, 0.08  # pixels; width of the bright bar as a share of the picture


@dataclass(frozen=True, kw_only=True)
class TwoWays:
    """One state, two equally good ways to act: the least that tells a generative policy from a regression.

    The state ``s`` is uniform in [-1, 1] and stays what it is for an episode. The actions are ``x = s + m`` and ``y = 3 - 2 s``, where
    ``m`` is -1 or 1 with equal probability, drawn once per episode; both carry normal noise. What is seen: the vector ``state``, the
    ``keypoints`` ``(s, 0)`` and ``(s, 1)``, and a ``picture`` of 16 × 16 pixels with a bright bar at ``s``.

    Attributes:
        episodes: How many.
        length: Control steps of each.
        noise: Standard deviation, units of the actions.
        seed: Of all draws.

    Raises:
        ValueError: If a number is out of range.
    """

    episodes: int = 400
    length: int = 4
    noise: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.length < 1 or not self.noise >= 0:
            given = f"episodes={self.episodes}, length={self.length} and noise={self.noise}"
            raise ValueError(f"TwoWays needs episodes >= 1, length >= 1 and noise >= 0, got {given}")

    @property
    def action(self) -> ActionSpec:
        """What its actions mean."""
        return ActionSpec(names=("x", "y"), control_rate_hz=10.0)

    def load(self) -> Demonstrations:
        """Draw them."""
        random = np.random.default_rng(self.seed)
        episodes = tuple(self._episode(random) for _ in range(self.episodes))
        return Demonstrations(episodes=episodes, action=self.action, env={"env_name": "TwoWays"})

    def _episode(self, random: np.random.Generator) -> Episode:
        state, mode = random.uniform(-1, 1), random.choice([-1.0, 1.0])
        actions = np.array([state + mode, 3 - 2 * state]) + self.noise * random.standard_normal((self.length, 2))
        frame = _frame(state)
        return Episode(
            observations={name: np.repeat(value[None], self.length, 0) for name, value in frame.items()},
            actions=actions.astype(np.float32),
            rewards=np.ones(self.length, np.float32),
            dones=np.arange(self.length) == self.length - 1,
            success=True,
        )


@dataclass(frozen=True, kw_only=True)
class TwoPaths:
    """A state that moves one way or the other: the least in which actions and the frames that they lead to must agree.

    The state begins uniform in [-0.5, 0.5] and moves by ``speed·x`` a control step, where the action is ``x = m``, -1 or 1 with equal
    probability and the same for an episode, with normal noise. What is seen is that of :class:`TwoWays`; it tells nothing of ``m``.

    Attributes:
        episodes: How many.
        length: Control steps of each.
        speed: Of the state per control step and unit of the action.
        noise: Standard deviation of the actions.
        seed: Of all draws.

    Raises:
        ValueError: If a number is out of range.
    """

    episodes: int = 400
    length: int = 8
    speed: float = 0.05
    noise: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.length < 1 or not self.noise >= 0:
            given = f"episodes={self.episodes}, length={self.length} and noise={self.noise}"
            raise ValueError(f"TwoPaths needs episodes >= 1, length >= 1 and noise >= 0, got {given}")

    @property
    def action(self) -> ActionSpec:
        """What its actions mean."""
        return ActionSpec(names=("x",), control_rate_hz=10.0)

    def load(self) -> Demonstrations:
        """Draw them."""
        random = np.random.default_rng(self.seed)
        episodes = tuple(self._episode(random) for _ in range(self.episodes))
        return Demonstrations(episodes=episodes, action=self.action, env={"env_name": "TwoPaths"})

    def _episode(self, random: np.random.Generator) -> Episode:
        start, mode = random.uniform(-0.5, 0.5), random.choice([-1.0, 1.0])
        actions = mode + self.noise * random.standard_normal((self.length, 1))
        states = start + self.speed * np.concatenate([[0.0], actions[:-1, 0].cumsum()])
        frames = [_frame(state) for state in states]
        return Episode(
            observations={name: np.stack([frame[name] for frame in frames]) for name in frames[0]},
            actions=actions.astype(np.float32),
            rewards=np.ones(self.length, np.float32),
            dones=np.arange(self.length) == self.length - 1,
            success=True,
        )


def seen_at(state: float) -> dict[str, NDArray[Any]]:
    """One frame of every sensor of :class:`TwoWays` and :class:`TwoPaths`, as a policy sees it.

    Args:
        state: In [-1, 1].

    Returns:
        ``state`` ``(1,)``, ``keypoints`` ``(2, 2)`` and ``picture`` ``(3, 16, 16)`` in [0, 1], float32.
    """
    frame = _frame(state)
    return frame | {"picture": (frame["picture"].transpose(2, 0, 1) / 255).astype(np.float32)}


def _frame(state: float) -> dict[str, NDArray[Any]]:
    columns = np.linspace(-1, 1, _SIDE)
    bar = np.exp(-0.5 * ((columns - state) / (2 * _BAR)) ** 2)
    picture = np.broadcast_to((255 * bar).astype(np.uint8)[None, :, None], (_SIDE, _SIDE, 3))
    points = np.array([[state, 0], [state, 1]], np.float32)
    return {"state": np.array([state], np.float32), "keypoints": points, "picture": picture}
