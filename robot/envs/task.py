"""One Gymnasium environment around whatever simulates a task: spaces, time limit, success, seeds.

Importing this module needs Gymnasium; the sources in this package import it when they make an environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces

from robot.envs.base import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Outcome", "Simulation", "TaskEnv", "picture_space", "vector_space"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one action led to.

    Attributes:
        frame: What the sensors show now.
        reward: Of this step.
        success: Whether the task is solved now.
        info: Anything else worth knowing.
        over: Whether the task has ended by itself, solved or not.
    """

    frame: Frame
    reward: float
    success: bool
    info: Mapping[str, Any] = field(default_factory=dict)
    over: bool = False


class Simulation(Protocol):
    """A task in its simulator."""

    @property
    def sensors(self) -> Mapping[str, spaces.Box]:
        """Space of each sensor."""
        ...

    @property
    def bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Smallest and largest action, ``(dof,)`` each; actions outside are clipped."""
        ...

    def begin(self, seed: int) -> Frame:
        """Start the episode that this seed determines, whatever happened before."""
        ...

    def step(self, action: NDArray[np.float32]) -> Outcome:
        """Act for one control step."""
        ...

    def state(self) -> NDArray[Any] | None:
        """The simulator's own state, for the record; None if there is none."""
        ...

    def picture(self) -> NDArray[np.uint8]:
        """What a bystander sees, ``(height, width, 3)``."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class TaskEnv(gymnasium.Env[Any, Any]):
    """A :class:`Simulation` under Gymnasium's contract.

    Attributes:
        simulation: What it runs.
    """

    def __init__(self, simulation: Simulation, *, max_steps: int, stop_on_success: bool, rate_hz: float) -> None:
        self.simulation = simulation
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": rate_hz}
        self.render_mode = "rgb_array"
        self.observation_space = spaces.Dict(dict(simulation.sensors))
        low, high = simulation.bounds
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self._max_steps, self._stop_on_success, self._steps = max_steps, stop_on_success, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:  # noqa: ARG002
        """Start an episode; without a seed, one drawn from the seed of an earlier reset.

        Args:
            seed: Determines the episode, >= 0.
            options: None are known.
        """
        super().reset(seed=seed)
        self._steps = 0
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        return self.simulation.begin(drawn), {"success": False, "seed": drawn}

    def step(self, action: NDArray[np.float32]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Act; what lies outside the bounds is clipped.

        Args:
            action: ``(dof,)``.

        Raises:
            ValueError: If the action has another shape or is not finite.
        """
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise ValueError(f"an action must be {self.action_space.shape} finite numbers, got shape {action.shape}: {action}")
        low, high = self.simulation.bounds
        outcome = self.simulation.step(np.clip(action, low, high))
        self._steps += 1
        terminated = outcome.over or (outcome.success and self._stop_on_success)
        truncated = self._steps >= self._max_steps and not terminated
        return outcome.frame, outcome.reward, terminated, truncated, {**outcome.info, "success": outcome.success}

    def state(self) -> NDArray[Any] | None:
        """The simulator's own state, for the record; None if there is none."""
        return self.simulation.state()

    def render(self) -> Any:
        """What a bystander sees, uint8 ``(height, width, 3)``."""
        return self.simulation.picture()

    def close(self) -> None:
        """Free the simulator."""
        self.simulation.close()


def vector_space(*shape: int) -> spaces.Box:
    """Space of a sensor that gives numbers of any size."""
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def picture_space(height: int, width: int) -> spaces.Box:
    """Space of a camera."""
    return spaces.Box(0, 255, (height, width, 3), np.uint8)
