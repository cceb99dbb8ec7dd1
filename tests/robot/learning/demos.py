"""Closed-form demonstrations and small jobs; imported as ``demos`` (see conftest.py)."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flowrl.train import AdamW
from robot.demonstrations.data import Demonstrations, Episode
from robot.learning import ActionMLP, BehaviourCloning, Flow, StateEncoder
from robot.types import ActionSpec

SPEC = ActionSpec(names=("x", "y"), control_rate_hz=10)


@dataclass(frozen=True, kw_only=True)
class TwoWays:
    """The state ``s`` is uniform in [-1, 1]; ``x = s + m`` and ``y = 3 - 2 s`` with ``m`` = -1 or +1, each half the time, plus noise.

    ``m`` is drawn once per episode, so that all actions of a chunk agree on it; the state stays what it is.
    """

    episodes: int = 400
    length: int = 4
    noise: float = 0.05
    seed: int = 0

    def load(self) -> Demonstrations:
        random = np.random.default_rng(self.seed)
        return Demonstrations(episodes=tuple(self._episode(random) for _ in range(self.episodes)), action=SPEC, env={"name": "two ways"})

    def _episode(self, random: np.random.Generator) -> Episode:
        state, mode = random.uniform(-1, 1), random.choice([-1.0, 1.0])
        actions = np.stack([np.full(self.length, state + mode), np.full(self.length, 3 - 2 * state)], axis=1)
        return episode(np.full((self.length, 1), state), actions + self.noise * random.standard_normal(actions.shape))


def episode(state: np.ndarray, actions: np.ndarray, **sensors: np.ndarray) -> Episode:
    steps = len(actions)
    return Episode(
        observations={"state": np.asarray(state, np.float32), **sensors},
        actions=np.asarray(actions, np.float32),
        rewards=np.zeros(steps, np.float32),
        dones=np.zeros(steps, bool),
        success=True,
    )


def numbered(*lengths: int, **sensors: object) -> Demonstrations:
    """Episode e: action (e, t) and state (t,) at time t."""
    episodes = tuple(
        episode(np.arange(length)[:, None], np.stack([np.full(length, e), np.arange(length)], axis=1)) for e, length in enumerate(lengths)
    )
    return Demonstrations(episodes=episodes, action=SPEC)


@dataclass(frozen=True, kw_only=True)
class Given:
    """Demonstrations that are there already."""

    demonstrations: Demonstrations = field(repr=False)

    def load(self) -> Demonstrations:
        return self.demonstrations


def job(run_dir: Path, **fields: object) -> BehaviourCloning:
    """A run that takes milliseconds per step."""
    defaults = {
        "demonstrations": TwoWays(episodes=24),
        "process": Flow(),
        "encoder": StateEncoder(sensors=("state",)),
        "network": ActionMLP(width=16, layers=1, time_width=8),
        "horizon": 4,
        "execute": 2,
        "steps": 6,
        "batch_size": 8,
        "optimizer": AdamW(lr=1e-3, schedule="cosine", warmup_steps=2),
        "log_every": 2,
        "validate_every": 3,
        "checkpoint_every": 2,
    }
    return BehaviourCloning(run_dir=str(run_dir), **(defaults | fields))
