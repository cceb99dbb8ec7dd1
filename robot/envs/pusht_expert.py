"""PushT's expert: it tries pushes in its own copy of the simulator and carries out the best, again and again."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from flowrl.errors import require

if TYPE_CHECKING:
    import gymnasium
    from numpy.typing import NDArray

    from robot.envs.base import Frame

    Point = NDArray[np.float64]

__all__ = ["PushPlanner"]

_TIP = 15.0  # radius of the tip
_GAP = 6.0  # free space between tip and block where a push begins
_DETOUR = 12.0  # free space around the block on the way there
_REACHED = 24.0
_STRIDE = 35.0  # how far the target moves per control step of a push
_WALL = (22.0, 490.0)
_TRAVEL_COST = 0.02  # pixels of error that a pixel of travel must earn
_VERIFIED = 4


@dataclass(frozen=True)
class _Push:
    """Begin beside the block, end some way into where it was."""

    begin: Point
    end: Point


class PushPlanner:
    """Plans with candidate pushes whenever it has carried out the last plan."""

    def __init__(self, seed: int, candidates: int) -> None:
        self._generator = np.random.default_rng([0x7075_7368, seed])
        self._candidates = candidates
        self._clone = require("gym_pusht.envs.pusht", "pusht").PushTEnv()
        self._clone.reset(seed=0)
        self._clone._get_coverage = float  # noqa: SLF001  (0.0; half of the time of a step)
        self._plan: list[Point] = []

    def act(self, env: gymnasium.Env[Any, Any], frame: Frame) -> NDArray[np.float32]:  # noqa: ARG002
        """Where the tip shall go."""
        if not self._plan:
            simulation: Any = env.unwrapped.simulation  # type: ignore[attr-defined]
            self._plan = self._best_plan(simulation.state())
        return self._plan.pop(0).astype(np.float32)

    def _best_plan(self, state: Point) -> list[Point]:
        """Actions of the push that brings the block nearest to its goal."""
        self._restore(state)
        outline = _outline(self._clone)
        ranked: list[tuple[float, int, _Push, list[Point]]] = []
        for index, push in enumerate(self._draw(outline)):
            way = _way(outline, state[:2], push.begin)
            if way is None:
                continue
            cost = _TRAVEL_COST * sum(float(np.linalg.norm(b - a)) for a, b in pairwise(way))
            ranked.append((self._after(state, push) + cost, index, push, way))
        tried = [self._carry_out(state, push, way) for _, _, push, way in heapq.nsmallest(_VERIFIED, ranked)]
        return min(tried, key=lambda result: result[0])[1] if tried else [self._aside(state)]

    def _draw(self, outline: Any) -> list[_Push]:
        """Pushes against random places of the outline, up to 35° off its normal, mostly short ones."""
        drawn = []
        for _ in range(self._candidates):
            place = self._generator.uniform(0, outline.length)
            at, after = (np.array(outline.exterior.interpolate(where % outline.length).coords[0]) for where in (place, place + 0.5))
            along = (after - at) / np.linalg.norm(after - at)
            outward = np.array([along[1], -along[0]]) if outline.exterior.is_ccw else np.array([-along[1], along[0]])
            angle = self._generator.uniform(-0.6, 0.6)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            depth = np.exp(self._generator.uniform(np.log(3), np.log(150)))
            begin = at + outward * (_TIP + _GAP)
            end = begin - turn @ outward * (_GAP + depth)
            if _inside(begin) and _inside(end):
                drawn.append(_Push(begin, end))
        return drawn

    def _after(self, state: Point, push: _Push) -> float:
        """Error of the block if the tip were there already."""
        moved = state.copy()
        moved[:2], moved[2:4] = push.begin, 0
        self._restore(moved)
        for target in _stroke(push):
            self._clone.step(target)
        return _error(self._clone)

    def _carry_out(self, state: Point, push: _Push, way: list[Point]) -> tuple[float, list[Point]]:
        """Error after going there and pushing, and the actions of it."""
        self._restore(state)
        actions: list[Point] = []
        for waypoint in way[1:]:
            for _ in range(12):
                actions.append(waypoint)
                self._clone.step(waypoint)
                last = waypoint is way[-1]
                if np.linalg.norm(np.array(self._clone.agent.position) - waypoint) < (_REACHED / 4 if last else _REACHED):
                    break
        best = (_error(self._clone) + 1.0, len(actions))
        for target in _stroke(push):
            actions.append(target)
            self._clone.step(target)
            best = min(best, (_error(self._clone), len(actions)))
        return best[0], actions[: max(best[1], 1)]

    def _aside(self, state: Point) -> Point:
        """A step away, where no push can be reached."""
        return np.clip(state[:2] + self._generator.normal(0, 60, 2), *_WALL)

    def _restore(self, state: Point) -> None:
        tip, block = self._clone.agent, self._clone.block
        tip.position, tip.velocity = tuple(state[:2]), tuple(state[2:4])
        block.angle = float(state[6])  # turns about the centre of gravity, so it comes before the position
        block.position, block.velocity, block.angular_velocity = tuple(state[4:6]), tuple(state[7:9]), float(state[9])
        for body in (tip, block):
            self._clone.space.reindex_shapes_for_body(body)


def _stroke(push: _Push) -> list[Point]:
    """Targets of a push: evenly on, then once more where it ends."""
    count = max(int(np.ceil(np.linalg.norm(push.end - push.begin) / _STRIDE)), 1)
    return [push.begin + (push.end - push.begin) * step / count for step in range(1, count + 1)] + [push.end] * 2


def _error(env: Any) -> float:
    """Mean distance of the block's corners from their goals, pixels."""
    goal = env.get_goal_pose_body(env.goal_pose)
    pairs = [(env.block.local_to_world(v), goal.local_to_world(v)) for shape in env.block.shapes for v in shape.get_vertices()]
    return float(np.mean([(one - other).length for one, other in pairs]))


def _outline(env: Any) -> Any:
    """The block as one polygon."""
    geometry = require("shapely.geometry", "pusht")
    union = require("shapely.ops", "pusht").unary_union
    shapes = [geometry.Polygon([tuple(env.block.local_to_world(v)) for v in shape.get_vertices()]) for shape in env.block.shapes]
    return union([shape.buffer(0.05, join_style="mitre") for shape in shapes])


def _inside(point: Point) -> bool:
    return bool((point >= _WALL[0]).all() and (point <= _WALL[1]).all())


def _way(outline: Any, start: Point, end: Point) -> list[Point] | None:
    """Shortest way of the tip around the block, over the corners of a polygon around it; None if there is none."""
    geometry = require("shapely.geometry", "pusht")
    around = outline.buffer(_TIP + _DETOUR, join_style="mitre")
    forbidden = outline.buffer(_TIP + 2.0)
    corners = [np.array(corner) for corner in around.exterior.coords[:-1]]
    leave = np.array(around.exterior.interpolate(around.exterior.project(geometry.Point(start))).coords[0])
    blocked = forbidden.contains(geometry.Point(start))
    nodes = [start, end, *([leave] if blocked else []), *corners]
    usable = [index < 2 or _inside(node) for index, node in enumerate(nodes)]  # noqa: PLR2004

    def free(a: int, b: int) -> bool:
        if blocked and 0 in {a, b}:
            return {a, b} == {0, 2}
        return usable[a] and usable[b] and not forbidden.intersects(geometry.LineString([nodes[a], nodes[b]]))

    return _shortest(nodes, free)


def _shortest(nodes: list[Point], free: Any) -> list[Point] | None:
    """Dijkstra's algorithm from the first node to the second."""
    queue: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, (0,))]
    seen = set()
    while queue:
        length, here, path = heapq.heappop(queue)
        if here == 1:
            return [nodes[index] for index in path]
        if here in seen:
            continue
        seen.add(here)
        for there in range(len(nodes)):
            if there not in seen and free(here, there):
                heapq.heappush(queue, (length + float(np.linalg.norm(nodes[there] - nodes[here])), there, (*path, there)))
    return None
