"""A closed loop in one step whose success rate is known in closed form; no simulator.

A target ``a*`` is shown, one action ``a`` is taken, and it succeeds if ``|a − a*| < 0.2``. A policy whose actions are
``N(a* + bias, std²)`` succeeds with probability ``Φ((0.2 − bias)/std) − Φ((−0.2 − bias)/std)``, and two such policies of equal ``std``
composed with weights ``w`` and ``1 − w`` act like one with bias ``w·b_1 + (1 − w)·b_2``. So what rollouts, searches and reports say
can be checked against the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from robot.envs.line import LineTask, line_bounds, line_picture

if TYPE_CHECKING:
    import gymnasium
    from numpy.typing import NDArray

    from robot.envs.base import Frame
    from robot.envs.task import Outcome

__all__ = ["Toy", "toy_success_rate"]


@dataclass(frozen=True, kw_only=True)
class Toy(LineTask):
    """Hit a target on a line with one action; the sensor ``target`` shows where it is, uniform in [-1, 1]. Hit or miss, that ends it.

    Attributes:
        tolerance: Largest miss that counts as success, > 0.

    Raises:
        ValueError: If the tolerance is not positive.
    """

    tolerance: float = 0.2

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be > 0, got {self.tolerance}")

    @property
    def name(self) -> str:
        """Of the task."""
        return "toy"

    def simulation(self) -> _Line:
        """See :class:`robot.envs.line.LineTask`."""
        return _Line(self.tolerance)

    def expert(self, seed: int) -> _Aim:  # noqa: ARG002  (there is nothing to draw)
        """Takes the target itself."""
        return _Aim()


def toy_success_rate(bias: float, std: float = 0.1, tolerance: float = 0.2) -> float:
    """Probability that ``N(bias, std²)`` lies within the tolerance.

    Args:
        bias: Mean miss of the policy, or of the composition.
        std: Of its actions, > 0.
        tolerance: Of the task.
    """
    inside = (erf((edge - bias) / (std * sqrt(2))) / 2 for edge in (tolerance, -tolerance))
    return next(inside) - next(inside)


class _Line:
    """The line with its target."""

    def __init__(self, tolerance: float) -> None:
        from robot.envs.task import vector_space

        self.sensors = {"target": vector_space(1)}
        self.bounds = line_bounds()
        self._tolerance, self._target, self._action = tolerance, 0.0, 0.0

    def begin(self, seed: int) -> Frame:
        """Draw the target."""
        self._target, self._action = float(np.random.default_rng(seed).uniform(-1, 1)), 0.0
        return self._frame()

    def step(self, action: NDArray[np.float32]) -> Outcome:
        """Compare."""
        from robot.envs.task import Outcome

        self._action = float(action[0])
        miss = abs(self._action - float(np.float32(self._target)))
        return Outcome(frame=self._frame(), reward=-miss, success=miss < self._tolerance, info={"miss": miss}, over=True)

    def state(self) -> NDArray[np.float64]:
        """The target."""
        return np.array([self._target])

    def picture(self) -> NDArray[np.uint8]:
        """The accepted interval in green and the action in black, from -2 to 2."""
        return line_picture(lambda places: np.abs(places - self._target), self._tolerance, self._action)

    def close(self) -> None:
        """Nothing to free."""

    def _frame(self) -> Frame:
        return {"target": np.array([self._target], np.float32)}


class _Aim:
    def act(self, env: gymnasium.Env[Any, Any], frame: Frame) -> NDArray[np.float32]:  # noqa: ARG002
        """The target."""
        return np.asarray(frame["target"], np.float32)
