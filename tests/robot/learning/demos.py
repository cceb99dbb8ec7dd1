"""Closed-form demonstrations and small jobs; imported as ``demos`` (see conftest.py)."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flowrl.train import AdamW
from robot.demonstrations.data import Demonstrations, Episode
from robot.learning import ActionMLP, BehaviourCloning, Flow, StateEncoder, TwoWays
from robot.types import ActionSpec

SPEC = ActionSpec(names=("x", "y"), control_rate_hz=10)


def episode(state: np.ndarray, actions: np.ndarray, **sensors: np.ndarray) -> Episode:
    steps = len(actions)
    return Episode(
        observations={"state": np.asarray(state, np.float32), **sensors},
        actions=np.asarray(actions, np.float32),
        rewards=np.zeros(steps, np.float32),
        dones=np.zeros(steps, bool),
        success=True,
    )


def numbered(*lengths: int) -> Demonstrations:
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
