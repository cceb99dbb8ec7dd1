"""Scripted experts for Lift, Can and Square: they look into the simulator and correct themselves at every step.

Each is a plan, a generator of actions written as the movements that it consists of. A plan that fails (the object slipped, or was pushed
away) begins anew with the object where it lies now.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot.envs.robosuite_hand import FORWARD, Body, Hand, Vector, wrapped

if TYPE_CHECKING:
    import gymnasium

    from robot.envs.base import Frame

__all__ = ["CanExpert", "LiftExpert", "ScriptedExpert", "SquareExpert", "Style", "peg_approach"]

Actions: TypeAlias = Iterator[NDArray[np.float32]]

OPEN, CLOSE = -1.0, 1.0
ABOVE_MIDDLE_M = 0.012
"""Where the fingers take the can; lower, its top would touch the palm."""
PEG_BEARING = 0.13
"""Direction from the robot's base to the square peg, rad."""
HELD_M = 0.09
"""An object further than this from the fingers has been lost."""
HANDLE_M = 0.054
"""From the middle of the nut to that of its handle, along the nut's x-axis."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a demonstrator moves; drawn anew for every episode, so that demonstrations differ.

    Attributes:
        gain: Commanded displacement over the remaining one.
        speed: Longest command of movement or of turn, in action units (1 asks for 5 cm or 0.5 rad).
        hover_m: Height above the object from which the hand descends.
        depth_m: Height of the fingers over the object's middle when they close.
        carry_m: How much higher than needed the object is carried.
        yaw: Turn of the hand where the object leaves it open, rad.
        squeeze: Control steps for closing the fingers.
    """

    gain: float
    speed: float
    hover_m: float
    depth_m: float
    carry_m: float
    yaw: float
    squeeze: int

    @classmethod
    def drawn(cls, seed: int) -> Style:
        """The style that a seed determines."""
        draw = np.random.default_rng(seed)
        return cls(
            gain=draw.uniform(1.2, 2.0),
            speed=draw.uniform(0.6, 1.0),
            hover_m=draw.uniform(0.06, 0.12),
            depth_m=draw.uniform(-0.004, 0.006),
            carry_m=draw.uniform(0.0, 0.06),
            yaw=draw.uniform(-0.35, 0.35),
            squeeze=int(draw.integers(10, 15)),
        )


class ScriptedExpert(ABC):
    """Acts out the plan of a subclass until the episode ends.

    Attributes:
        style: How it moves.
        hand: What it moves; there from the first action on.
    """

    hand: Hand

    def __init__(self, seed: int) -> None:
        self.style = Style.drawn(seed)
        self._plan: Actions | None = None

    def act(self, env: gymnasium.Env[Any, Any], frame: Frame) -> NDArray[np.float32]:  # noqa: ARG002  (it sees more than a frame)
        """The next action ``(7,)``; the first call begins the episode."""
        if self._plan is None:
            self.hand = Hand(env.unwrapped.simulation.robosuite)  # type: ignore[attr-defined]
            self._plan = self._attempts()
        return next(self._plan)

    def _attempts(self) -> Actions:
        while True:
            yield from self.attempt()

    @abstractmethod
    def attempt(self) -> Actions:
        """Take the object from where it lies now to where it belongs."""

    def move(self, to: Vector, turn: float, grip: float) -> NDArray[np.float32]:
        """One action towards a place and a turn from where the hand is now, the way round that the wrist can go."""
        yaw = self.hand.yaw + min(max(self.hand.way_round(turn), -1), 1)
        return self.hand.towards(to, yaw, grip, gain=self.style.gain, speed=self.style.speed)

    def reach(self, to: Callable[[], Vector], yaw: Callable[[], float], grip: float, *, within: float, patience: int = 80) -> Actions:
        """Move until the hand is at a place that may itself move: within so many metres, and 0.1 rad for each centimetre of them."""
        for _ in range(patience):
            place, turn = to(), wrapped(yaw() - self.hand.yaw)
            if math.dist(place, self.hand.position) < within and abs(turn) < 10 * within:
                return
            yield self.move(place, turn, grip)

    def rise(self, height: float, grip: float) -> Actions:
        """Move straight up to a height."""
        place, yaw = np.array([*self.hand.position[:2], height]), self.hand.yaw
        yield from self.reach(lambda: place, lambda: yaw, grip, within=0.02, patience=40)

    def hold(self, grip: float, steps: int) -> Actions:
        """Stay and work the fingers."""
        place, yaw = self.hand.position, self.hand.yaw
        for _ in range(steps):
            yield self.move(place, wrapped(yaw - self.hand.yaw), grip)

    def grasp(self, where: Callable[[], Vector], yaw: Callable[[], float]) -> Actions:
        """Come from above with open fingers and close them."""
        over, deep = np.array([0, 0, self.style.hover_m]), np.array([0, 0, self.style.depth_m])
        if self.hand.position[2] < where()[2] + self.style.hover_m / 2:
            yield from self.rise(where()[2] + self.style.hover_m, OPEN)
        yield from self.reach(lambda: where() + over, yaw, OPEN, within=0.012)
        yield from self.reach(lambda: where() + deep, yaw, OPEN, within=0.006, patience=40)
        yield from self.hold(CLOSE, self.style.squeeze)

    def carry(self, thing: Body, to: Vector, turn: Callable[[], float], *, within: float, patience: int = 120) -> Actions:
        """Bring a grasped object to a place and turn it, as long as it stays between the fingers."""
        for _ in range(patience):
            off, angle = to - thing.position, turn()
            done = np.linalg.norm(off) < within and abs(angle) < 0.12  # noqa: PLR2004
            if done or not self.hand.is_near(thing, HELD_M):
                return
            yield self.move(self.hand.position + off, angle, CLOSE)


class LiftExpert(ScriptedExpert):
    """Grasps the cube by two of its faces, raises it and holds it there."""

    def attempt(self) -> Actions:
        """One grasp."""
        cube = self.hand.body("cube_main")
        quarter = math.pi / 2
        yield from self.grasp(lambda: cube.position, lambda: cube.yaw + quarter * round((FORWARD - cube.yaw) / quarter))
        above = cube.position + np.array([0, 0, 0.08 + self.style.carry_m])
        while self.hand.is_near(cube, 0.03):
            yield self.move(above, 0.0, CLOSE)


class CanExpert(ScriptedExpert):
    """Grasps the can, carries it over the near part of its bin (the arm reaches no further), lowers it and lets go."""

    def attempt(self) -> Actions:
        """One grasp and one delivery."""
        can = self.hand.body("Can_main")
        yaw = FORWARD + self.style.yaw
        place = self.hand.bin_corner + np.array([0.045, 0.075, 0])
        height = place[2] + 0.16 + self.style.carry_m
        yield from self.grasp(lambda: can.position + np.array([0, 0, ABOVE_MIDDLE_M]), lambda: yaw)
        yield from self.rise(height, CLOSE)
        for above, within in ((height - place[2], 0.03), (0.09, 0.02)):
            yield from self.carry(can, place + np.array([0, 0, above]), lambda: wrapped(yaw - self.hand.yaw), within=within)
        yield from self.hold(OPEN, 5)
        yield from self.rise(height, OPEN)


class SquareExpert(ScriptedExpert):
    """Grasps the nut by its handle, brings it in line with the peg and lowers it; the nut guides the hand, so slipping does no harm."""

    def attempt(self) -> Actions:
        """One grasp and one insertion."""
        nut, peg = self.hand.body("SquareNut_main"), self.hand.body("peg1").position
        side, goal = peg_approach(nut.yaw, self.hand.bearing(nut))
        height = 1.0 + self.style.carry_m
        yield from self.grasp(lambda: nut.point(np.array([HANDLE_M, 0, 0])), lambda: nut.yaw + side)
        yield from self.rise(height, CLOSE)

        def turn() -> float:
            return wrapped(goal - nut.yaw)

        for _ in range(3):
            yield from self.carry(nut, np.array([*peg[:2], height]), turn, within=0.005, patience=80)
            yield from self.carry(nut, np.array([*peg[:2], 0.9]), turn, within=0.012, patience=30)
            if nut.position[2] < 0.92 or not self.hand.is_near(nut, HELD_M):  # noqa: PLR2004  (the peg ends at 0.95)
                break
        yield from self.hold(OPEN, 8)
        yield from self.rise(height, OPEN)


def peg_approach(yaw: float, bearing: float) -> tuple[float, float]:
    """How to grasp a nut so that the wrist can also bring it onto the peg.

    The wrist turns from 1.9 rad right to 2.6 rad left of the direction from the robot's base to the hand. The handle may end up pointing
    at the robot or sideways; pointing away from it, the hand would be out of reach.

    Args:
        yaw: Direction of the handle now, rad.
        bearing: Direction from the robot's base to the nut, rad.

    Returns:
        Direction in which the fingers open relative to the handle's, and direction of the handle on the peg, rad.
    """
    found = []
    for side in (-math.pi / 2, math.pi / 2):
        begin = bearing + wrapped(yaw + side - FORWARD - bearing)
        for goal, effort in ((math.pi, 0.0), (math.pi / 2, 0.4), (-math.pi / 2, 0.4)):
            turn = wrapped(goal - yaw)
            end = begin + turn
            if all(-1.9 < angle < 2.6 for angle in (begin - bearing, end - PEG_BEARING)):  # noqa: PLR2004
                found.append((abs(begin) + 0.5 * abs(end) + 0.3 * abs(turn) + effort, (side, goal)))
    return min(found)[1]
