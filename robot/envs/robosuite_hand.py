"""The Panda's hand and the objects around it, as the scripted experts see them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

__all__ = ["FORWARD", "Body", "Hand", "Vector", "wrapped"]

Vector: TypeAlias = NDArray[np.float64]

FORWARD = math.pi / 2
"""Direction in which the fingers open while the wrist is straight, rad from the world's x-axis."""

WRIST_MIDDLE = 0.35
"""Of the range of the wrist, rad to the left of the direction from the robot's base to the hand."""

STEP_M, STEP_RAD = 0.05, 0.5


def wrapped(angle: float) -> float:
    """The same direction in (-pi, pi]."""
    return math.pi - (math.pi - angle) % (2 * math.pi)


@dataclass(frozen=True)
class Body:
    """An object of the scene, as it lies now.

    Attributes:
        data: The simulation's ``MjData``.
        index: Of the body.
    """

    data: Any
    index: int

    @property
    def position(self) -> Vector:
        """Of its origin, ``(3,)``, metres, world axes."""
        return np.array(self.data.xpos[self.index])

    @property
    def yaw(self) -> float:
        """Direction of its x-axis seen from above, rad."""
        return _direction(self._rotation[:, 0])

    def point(self, offset: Vector) -> Vector:
        """Where a point fixed to it lies, ``(3,)``, metres, world axes.

        Args:
            offset: In the object's own axes, metres.
        """
        return self.position + self._rotation @ offset

    @property
    def _rotation(self) -> Vector:
        return np.asarray(self.data.xmat[self.index]).reshape(3, 3)


class Hand:
    """Where the fingers are, and the action that moves them.

    Attributes:
        robosuite: robosuite's own environment.
    """

    def __init__(self, robosuite: Any) -> None:
        self.robosuite = robosuite
        self._model, self._data = robosuite.sim.model._model, robosuite.sim.data._data  # noqa: SLF001
        self._site = robosuite.robots[0].eef_site_id["right"]

    @property
    def position(self) -> Vector:
        """Of the point between the fingers, ``(3,)``, metres, world axes."""
        return np.array(self._data.site_xpos[self._site])

    @property
    def yaw(self) -> float:
        """Direction in which the fingers open seen from above, rad."""
        return _direction(self._rotation[:, 0])

    @property
    def bin_corner(self) -> Vector:
        """Corner, nearest to the robot, of the can's bin on the floor of the bins, ``(3,)``, metres."""
        return np.array(self.robosuite.bin2_pos)

    def body(self, name: str) -> Body:
        """An object by its name in the model."""
        return Body(self._data, self._model.body(name).id)

    def bearing(self, thing: Body | Hand) -> float:
        """Direction from the robot's base to an object, or to the hand itself, seen from above, rad."""
        return _direction(thing.position - np.array(self.robosuite.robots[0].base_pos))

    def way_round(self, turn: float) -> float:
        """The turn, or its complement to a full one if that ends further from the stops of the wrist.

        Args:
            turn: From where the hand is now, rad in (-pi, pi].
        """
        now = wrapped(self.yaw - FORWARD - self.bearing(self))
        ways = (turn, turn - 2 * math.pi, turn + 2 * math.pi)
        return min(ways, key=lambda way: abs(now + way - WRIST_MIDDLE))

    def is_near(self, thing: Body, metres: float) -> bool:
        """Whether an object is about where the fingers are."""
        return math.dist(thing.position, self.position) < metres

    def towards(self, position: Vector, yaw: float, grip: float, *, gain: float, speed: float) -> NDArray[np.float32]:
        """The action ``(7,)`` that moves to a place, turned about the vertical and pointing down.

        Args:
            position: Where to, ``(3,)``, metres.
            yaw: Direction in which the fingers shall open, rad.
            grip: -1 opens, 1 closes.
            gain: Commanded displacement over the remaining one.
            speed: Longest command of movement or of turn, action units.
        """
        c, s = math.cos(yaw), math.sin(yaw)
        down = np.array([[c, s, 0], [s, -c, 0], [0, 0, -1]])
        move = gain * (position - self.position) / STEP_M
        turn = gain * Rotation.from_matrix(down @ self._rotation.T).as_rotvec() / STEP_RAD
        return np.array([*_at_most(move, speed), *_at_most(turn, speed), grip], np.float32)

    @property
    def _rotation(self) -> Vector:
        return np.asarray(self._data.site_xmat[self._site]).reshape(3, 3)


def _direction(vector: Vector) -> float:
    return math.atan2(vector[1], vector[0])


def _at_most(vector: Vector, length: float) -> Vector:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))
