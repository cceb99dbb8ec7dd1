"""One episode of a scripted expert, with or without disturbed actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from robot.demonstrations.data import Episode

if TYPE_CHECKING:
    import gymnasium
    from numpy.typing import NDArray

    from robot.envs.base import EnvSource, Frame

__all__ = ["play_expert"]

_NOISE = 0x6E6F6973  # keeps the noise apart from other draws of the episode's seed


def play_expert(env: gymnasium.Env[Any, Any], source: EnvSource, seed: int, action_noise: float = 0.0) -> Episode:
    """Let the scripted expert act until the episode ends.

    Args:
        env: An environment that the source made.
        source: Gives the expert.
        seed: Of the episode, the expert and the noise.
        action_noise: Standard deviation of a disturbance that is added to what is executed, as a share of half the action's range; what is
            recorded is what the expert wanted (DART, arXiv:1703.09327), so that the data show how to recover.
    """
    generator = np.random.default_rng([_NOISE, seed])
    expert = source.expert(seed)
    frame, _ = env.reset(seed=seed)
    low, high = _bounds(env)
    trail = _Trail()
    while not trail.ended:
        wanted = np.clip(np.asarray(expert.act(env, frame), np.float32), low, high)
        disturbed = wanted + action_noise * (high - low) / 2 * generator.standard_normal(wanted.shape) if action_noise else wanted
        before, state = frame, _simulation(env, "state")
        frame, reward, terminated, truncated, info = env.step(np.clip(disturbed, low, high).astype(np.float32))
        trail.add(before, wanted, float(reward), bool(terminated), state)
        trail.ended, trail.success = terminated or truncated, trail.success or bool(info["success"])
    return trail.episode(seed, frame, _simulation(env, "model_xml"))


class _Trail:
    """The steps of an episode so far."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.actions: list[NDArray[np.float32]] = []
        self.rewards: list[float] = []
        self.dones: list[bool] = []
        self.states: list[NDArray[Any] | None] = []
        self.ended = self.success = False

    def add(self, frame: Frame, action: NDArray[np.float32], reward: float, done: bool, state: NDArray[Any] | None) -> None:  # noqa: FBT001
        """One step."""
        self.frames.append({name: np.array(value) for name, value in frame.items()})
        self.actions.append(action)
        self.rewards.append(reward)
        self.dones.append(done)
        self.states.append(None if state is None else np.array(state))

    def episode(self, seed: int, last: Frame, model: str | None) -> Episode:
        """All of them."""
        kept = [state for state in self.states if state is not None]
        return Episode(
            observations={name: np.stack([frame[name] for frame in self.frames]) for name in last},
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, np.float32),
            dones=np.array(self.dones),
            success=self.success,
            seed=seed,
            states=np.stack(kept) if len(kept) == len(self.states) else None,
            last=dict(last),
            model=model,
        )


def _bounds(env: gymnasium.Env[Any, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    space: Any = env.action_space
    return space.low, space.high


def _simulation(env: gymnasium.Env[Any, Any], what: str) -> Any:
    """What the simulation tells of itself, if it does."""
    method = getattr(getattr(env.unwrapped, "simulation", None), what, None)
    return method() if callable(method) else None
