"""PushT: push a T-shaped block onto its goal with a round tip.

Source: Chi et al., "Diffusion Policy" (arXiv:2303.04137), package ``gym-pusht``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flowrl.errors import close_match, require
from robot.envs.check import extra_problems
from robot.envs.needs import library_problems
from robot.types import ActionSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    import gymnasium
    from gymnasium.spaces import Box
    from numpy.typing import NDArray

    from robot.envs.base import Expert, Frame
    from robot.envs.task import Outcome

__all__ = ["PushT"]

_RATE_HZ = 10.0
_SENSORS = ("state", "agent", "keypoints", "image")
_ARENA = 512.0


@dataclass(frozen=True, kw_only=True)
class PushT:
    """Push the T; lengths are in pixels of a 512 × 512 arena, ``reset(seed=…)`` determines where tip and block begin.

    An action is where the tip shall go, absolute. Solved is a coverage of the goal above 95 %; ``info`` has ``coverage`` and
    ``max_coverage`` (the soft score that some papers report, there divided by 0.95 and cut at 1). The reward is that soft score now.
    Sensors: ``state`` (tip x, y, block x, y, and angle in [0, 2π)), ``agent`` (tip x, y), ``keypoints`` (8 corners of the T, x and y)
    and ``image``.

    Attributes:
        sensors: Which of the sensors to show.
        max_steps: Control steps (10 a second) after which an episode is truncated.
        stop_on_success: Whether success ends the episode.
        image_size: Pixels along each side of ``image``.
        video_size: Pixels along each side of a video's picture.
        candidates: Pushes that the expert tries in its own copy of the simulator whenever it plans, >= 1.

    Raises:
        ValueError: If a sensor is unknown or a number out of range.
    """

    sensors: tuple[str, ...] = ("agent", "keypoints")
    max_steps: int = 300
    stop_on_success: bool = True
    image_size: int = 96
    video_size: int = 256
    candidates: int = 40

    def __post_init__(self) -> None:
        if unknown := [name for name in self.sensors if name not in _SENSORS]:
            raise ValueError(f"PushT has no sensor {unknown[0]!r}{close_match(unknown[0], _SENSORS)}")
        if not self.sensors or min(self.max_steps, self.image_size, self.video_size, self.candidates) < 1:
            raise ValueError(f"sensors must not be empty, max_steps, image_size, video_size and candidates must be >= 1, got {self}")

    @property
    def name(self) -> str:
        """Of the task."""
        return "PushT"

    @property
    def action(self) -> ActionSpec:
        """Where the tip shall go."""
        return ActionSpec(names=("x", "y"), control_rate_hz=_RATE_HZ)

    def make(self) -> gymnasium.Env[Any, Any]:
        """A fresh environment.

        Raises:
            MissingExtraError: If gym-pusht is not installed.
        """
        require("gymnasium", "pusht")
        require("gym_pusht.envs.pusht", "pusht")
        from robot.envs.task import TaskEnv

        return TaskEnv(_Arena(self), max_steps=self.max_steps, stop_on_success=self.stop_on_success, rate_hz=_RATE_HZ)

    def expert(self, seed: int) -> Expert:
        """Plans pushes by trying them in a copy of the simulator."""
        from robot.envs.pusht_expert import PushPlanner

        return PushPlanner(seed, self.candidates)

    def problems(self) -> list[str]:
        """What keeps it from running here."""
        return extra_problems("pusht") + library_problems("pymunk", "pusht", at_least="6.6", below="7")  # 7 has no add_collision_handler


class _Arena:
    """gym-pusht's simulator."""

    def __init__(self, source: PushT) -> None:
        from robot.envs.task import picture_space, vector_space

        size, video = source.image_size, source.video_size
        self.env = require("gym_pusht.envs.pusht", "pusht").PushTEnv(
            observation_width=size, observation_height=size, visualization_width=video, visualization_height=video
        )
        every = {"state": vector_space(5), "agent": vector_space(2), "keypoints": vector_space(8, 2), "image": picture_space(size, size)}
        self.sensors: dict[str, Box] = {name: every[name] for name in source.sensors}
        self.bounds = (np.zeros(2, np.float32), np.full(2, _ARENA, np.float32))
        self._max_coverage = 0.0

    def begin(self, seed: int) -> Frame:
        """Place tip and block."""
        self.env.reset(seed=seed)
        self._max_coverage = 0.0
        return self._frame()

    def step(self, action: NDArray[np.float32]) -> Outcome:
        """Move the tip."""
        from robot.envs.task import Outcome

        _, reward, _, _, info = self.env.step(action.astype(np.float64))
        self._max_coverage = max(self._max_coverage, float(info["coverage"]))
        coverage = {"coverage": float(info["coverage"]), "max_coverage": self._max_coverage}
        return Outcome(frame=self._frame(), reward=float(reward), success=bool(info["is_success"]), info=coverage)

    def state(self) -> NDArray[np.float64]:
        """Position and velocity of tip and block, angle and spin of the block."""
        tip, block = self.env.agent, self.env.block
        return np.array([*tip.position, *tip.velocity, *block.position, block.angle, *block.velocity, block.angular_velocity])

    def picture(self) -> NDArray[np.uint8]:
        """The arena from above, with the latest action as a cross."""
        return np.asarray(self.env.render(), np.uint8)

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()

    def _frame(self) -> Frame:
        env = self.env
        readings: dict[str, Callable[[], NDArray[Any]]] = {
            "state": lambda: np.array([*env.agent.position, *env.block.position, env.block.angle % (2 * np.pi)], np.float32),
            "agent": lambda: np.array(env.agent.position, np.float32),
            "keypoints": lambda: np.asarray(env.get_keypoints(env._block_shapes), np.float32),  # noqa: SLF001
            "image": lambda: np.asarray(env._render(), np.uint8),  # noqa: SLF001
        }
        return {name: readings[name]() for name in self.sensors}
