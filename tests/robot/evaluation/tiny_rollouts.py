"""Tiny environments and policies for the tests of evaluation; worker processes import this file by its name."""

import os
import time
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch

from robot.types import ActionChunk, ActionSpec

SPEC = ActionSpec(names=("x",), control_rate_hz=10)
TIME_UP = 6  # control steps
DRIFT = 0.05  # per control step


class Reach(gymnasium.Env):
    """A start drawn from the seed, moved by the actions; solved while it lies within 0.2 of the goal 0."""

    observation_space = gymnasium.spaces.Dict({"position": gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)})
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, source):
        self.source, self.buffer = source, np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.buffer[:] = self.np_random.uniform(-1, 1)
        self._misbehave("reset")
        return {"position": self.buffer}, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        self.buffer += action + DRIFT  # in place: frames handed out before must not change
        self._misbehave("step")
        solved = bool(abs(self.buffer[0]) < 0.2)
        ended = solved and self.source.stop_on_success
        return {"position": self.buffer}, float(solved), ended, self.steps >= TIME_UP and not ended, self._info(solved)

    def _info(self, solved):
        return {} if self.source.silent else {"success": solved}

    def render(self):
        if self.source.blind:
            raise RuntimeError("no back end to draw with")
        picture = np.full((33, 47, 3), 255, np.uint8)
        picture[:, max(0, min(46, int(23 + 20 * self.buffer[0])))] = (200, 30, 0)
        return picture

    def _misbehave(self, where):
        how = self.source.faults.get(self.seed)
        if how is None or where != ("reset" if how.startswith("reset") else "step") or (where == "step" and self.steps < 2):
            return
        if how.endswith("raise"):
            raise RuntimeError(f"physics\ndiverged with seed {self.seed}")
        if how.endswith("die"):
            os._exit(7)
        time.sleep(60)


@dataclass(frozen=True)
class ReachSource:
    """What makes it; ``faults`` says by seed how an episode goes wrong: raise, die or hang, after 'reset ' already in reset."""

    faults: dict[int, str]
    stop_on_success: bool = True
    silent: bool = False
    blind: bool = False
    broken: bool = False
    name: str = "reach"
    action: ActionSpec = SPEC
    max_steps: int = TIME_UP

    def make(self):
        if self.broken:
            raise OSError("no simulator here")
        return Reach(self)

    def expert(self, seed):
        raise ValueError("there is none")

    def problems(self):
        return ["a part is missing; put it in"] if self.broken else []


@dataclass
class Steer:
    """Moves by ``-gain·position`` plus noise, the noise being the generator's; two control steps per chunk."""

    gain: float = 0.5
    noise: float = 0.3
    execute: int = 2
    poison: float | None = None  # positions above it make the action NaN
    name: str = "steer"
    action: ActionSpec = SPEC
    sensors: tuple[str, ...] = ("position",)
    history: int = 1

    def __post_init__(self):
        self.batches = []

    def act(self, observation, generator=None):
        position = observation.values["position"][:, -1]
        self.batches.append(len(position))
        drawn = torch.stack([torch.randn(self.execute, 1, generator=row) for row in generator])
        values = -self.gain * position[:, None].repeat(1, self.execute, 1) / self.execute + self.noise * drawn
        if self.poison is not None:
            values[position[:, 0] > self.poison] = torch.nan
        return ActionChunk(values=values, spec=self.action)


@dataclass(frozen=True, kw_only=True)
class SteerSource:
    """A policy as a config describes it; ``path`` stands for a checkpoint."""

    gain: float = 0.5
    noise: float = 0.3
    path: str | None = None
    action: ActionSpec = SPEC

    def load(self, device="cpu"):
        return Steer(gain=self.gain, noise=self.noise, action=self.action)
