"""What an episode is worth to the gate."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Protocol

from flowrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from robot.evaluation.episodes import EpisodeResult

__all__ = ["EpisodeReward", "OutcomeReward"]


class EpisodeReward(Protocol):
    """Scores a finished episode, by named parts."""

    @property
    def weights(self) -> Mapping[str, float]:
        """How much each part counts."""
        ...

    def __call__(self, result: EpisodeResult) -> Mapping[str, float]:
        """A value for each part; not asked about crashed episodes."""
        ...


@dataclass(frozen=True, kw_only=True)
class OutcomeReward:
    """A weighted sum of what an episode's result tells; a weight of 0 leaves a part out.

    Binary success says nothing about a group that solved every episode, or none. A reward that grades failures, such as the highest
    coverage on PushT (``max_reward``), orders the episodes of nearly every group.

    Attributes:
        success: Weight of whether the task was solved, 0 or 1.
        max_reward: Weight of the environment's highest reward; on PushT the best coverage so far, in [0, 1].
        episode_return: Weight of the sum of the environment's rewards.
        speed: Weight of how early the task was solved: 1 − (control steps until then) / ``horizon``; 0 for failures.
        horizon: Control steps that count as slow, > 0; read only with ``speed``.

    Raises:
        ConfigError: If all weights are 0, one is not finite, or the horizon is not positive.
    """

    success: float = 1.0
    max_reward: float = 0.0
    episode_return: float = 0.0
    speed: float = 0.0
    horizon: int = 300

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in _PARTS}
        if not any(given.values()) or not all(map(isfinite, given.values())):
            raise ConfigError(f"a reward needs finite weights of which one is not 0, got {given}; success: 1.0 is what is evaluated")
        if self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1 control step, got {self.horizon}")

    @property
    def weights(self) -> dict[str, float]:
        """See :class:`EpisodeReward`."""
        return {name: weight for name in _PARTS if (weight := getattr(self, name))}

    def __call__(self, result: EpisodeResult) -> dict[str, float]:
        """See :class:`EpisodeReward`."""
        early = 0.0 if result.success_at is None else max(0.0, 1 - result.success_at / self.horizon)
        found = {
            "success": float(result.success),
            "max_reward": 0.0 if result.max_reward is None else result.max_reward,
            "episode_return": result.return_,
            "speed": early,
        }
        return {name: found[name] for name in self.weights}


_PARTS = ("success", "max_reward", "episode_return", "speed")
