"""What the closed-form tasks on a line share: one action, a place, and the episode is over; no simulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from flowrl.errors import require
from robot.envs.needs import library_problems
from robot.types import ActionSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    import gymnasium
    from numpy.typing import NDArray

    from robot.envs.task import Simulation

__all__ = ["LINE_ACTION", "LineTask", "line_bounds", "line_picture"]

LINE_ACTION = ActionSpec(names=("position",), control_rate_hz=10)
_LIMIT = 100.0
_PICTURE = 64


class LineTask(ABC):
    """The part of an :class:`robot.envs.base.EnvSource` that tasks of one action on a line have in common."""

    @property
    def action(self) -> ActionSpec:
        """A position on the line."""
        return LINE_ACTION

    @property
    def max_steps(self) -> int:
        """One."""
        return 1

    @abstractmethod
    def simulation(self) -> Simulation:
        """The line, at the beginning of no episode yet."""

    def make(self) -> gymnasium.Env[Any, Any]:
        """A fresh environment.

        Raises:
            MissingExtraError: If Gymnasium is not installed.
        """
        require("gymnasium", "robot")
        from robot.envs.task import TaskEnv

        return TaskEnv(self.simulation(), max_steps=1, stop_on_success=True, rate_hz=LINE_ACTION.control_rate_hz)

    def problems(self) -> list[str]:
        """What keeps it from running here."""
        return library_problems("gymnasium", "robot", at_least="1.0", below="2")


def line_bounds() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest action."""
    return np.full(1, -_LIMIT, np.float32), np.full(1, _LIMIT, np.float32)


def line_picture(miss: Callable[[NDArray[np.float64]], NDArray[np.float64]], tolerance: float, action: float) -> NDArray[np.uint8]:
    """What is accepted in green and the action in black, from -2 to 2.

    Args:
        miss: Of places on the line.
        tolerance: Largest miss that is accepted.
        action: The place that was taken.
    """
    picture = np.full((_PICTURE, _PICTURE, 3), 255, np.uint8)
    places = np.linspace(-2, 2, _PICTURE)
    picture[:, miss(places) < tolerance] = (150, 220, 150)
    picture[_PICTURE // 4 : -_PICTURE // 4, int(np.abs(places - action).argmin())] = 0
    return picture
