"""The task of :class:`robot.gating.toy.TwoModes`: take one action at either of two places; in between lies failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robot.envs.line import LineTask, line_bounds, line_picture
from robot.gating.toy import TOY_SENSOR

if TYPE_CHECKING:
    import gymnasium
    from numpy.typing import NDArray

    from robot.envs.base import Expert, Frame
    from robot.envs.task import Outcome

__all__ = ["TwoModesTask"]


@dataclass(frozen=True, kw_only=True)
class TwoModesTask(LineTask):
    """One action, a place on the line; it succeeds within the tolerance of −1 or 1, and is rewarded by minus its squared distance to them.

    Attributes:
        tolerance: Largest miss that counts as success, > 0.
        size: Numbers that its sensor shows, all 0; the world-action model's tokens times channels.

    Raises:
        ValueError: If a number is out of range.
    """

    tolerance: float = 0.2
    size: int = 1

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and self.size >= 1):
            raise ValueError(f"tolerance must be > 0 and size >= 1, got {self.tolerance} and {self.size}")

    @property
    def name(self) -> str:
        """Of the task."""
        return "two modes"

    def simulation(self) -> _Line:
        """See :class:`robot.envs.line.LineTask`."""
        return _Line(self)

    def expert(self, seed: int) -> Expert:
        """Takes one of the places, by the seed's parity."""
        return _Chooser(1.0 if seed % 2 else -1.0)


class _Line:
    """The line with its two places."""

    def __init__(self, task: TwoModesTask) -> None:
        from robot.envs.task import vector_space

        self.sensors = {TOY_SENSOR: vector_space(task.size)}
        self.bounds = line_bounds()
        self._task, self._action = task, 0.0

    def begin(self, seed: int) -> Frame:
        """Every episode begins alike."""
        del seed
        self._action = 0.0
        return self._frame()

    def step(self, action: NDArray[np.float32]) -> Outcome:
        """Compare with the nearer place."""
        from robot.envs.task import Outcome

        self._action = float(action[0])
        miss = abs(abs(self._action) - 1)
        return Outcome(frame=self._frame(), reward=-(miss**2), success=miss < self._task.tolerance, info={"miss": miss}, over=True)

    def state(self) -> NDArray[np.float64]:
        """Where the action was."""
        return np.array([self._action])

    def picture(self) -> NDArray[np.uint8]:
        """The accepted intervals in green and the action in black, from -2 to 2."""
        return line_picture(lambda places: np.abs(np.abs(places) - 1), self._task.tolerance, self._action)

    def close(self) -> None:
        """Nothing to free."""

    def _frame(self) -> Frame:
        return {TOY_SENSOR: np.zeros(self._task.size, np.float32)}


@dataclass(frozen=True)
class _Chooser:
    place: float

    def act(self, env: gymnasium.Env[Any, Any], frame: Frame) -> NDArray[np.float32]:
        """Its place."""
        del env, frame
        return np.array([self.place], np.float32)
