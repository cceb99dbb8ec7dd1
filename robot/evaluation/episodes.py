"""An episode to run, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

__all__ = ["EpisodeResult", "Job"]

_WRITTEN = {"return_": "return"}  # a Python keyword cannot be a field


@dataclass(frozen=True, kw_only=True)
class Job:
    """One episode to run.

    Attributes:
        seed: Of the environment's reset, >= 0; together with the run's seed it also determines the policy's noise.
        arm: What is being tried, such as a policy's name; results are told apart by ``(arm, seed)``.
        weights: Of a composed policy's members in this episode; None for the policy's own.
        variation: Names this rollout among those of the same seed, whose noise is the same: an exploring policy is told it. None where
            there is but one, and the policy is a plain one.
    """

    seed: int
    arm: str = "policy"
    weights: tuple[float, ...] | None = None
    variation: int | None = None

    @property
    def key(self) -> tuple[str, int, int | None]:
        """What tells jobs apart."""
        return self.arm, self.seed, self.variation


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What became of an episode.

    Attributes:
        arm: Of the job.
        seed: Of the job.
        success: Whether the task was solved at any control step. A crashed episode is no success.
        success_at: The first control step after which it was solved, from 1; None if never.
        success_at_end: Whether it was solved after the last control step.
        terminated: Whether the task ended the episode.
        truncated: Whether the time limit did.
        crashed: Whether neither did: the environment raised, died or hung, or the policy returned a non-finite action.
        error: Why it crashed, one line; None if it did not.
        return_: Sum of the rewards, the environment's unit.
        max_reward: The highest reward; None before the first control step.
        length: Control steps.
        clipped: Control steps whose action lay outside the action space and was clipped to it.
        chunks: How often the policy was asked.
        latency_s: Mean seconds per chunk in each member's network; a batch shares its time evenly.
        disagreement: Mean disagreement of composed policies, nats; None for a single policy.
    """

    arm: str
    seed: int
    success: bool
    success_at: int | None
    success_at_end: bool
    terminated: bool
    truncated: bool
    crashed: bool
    error: str | None = None
    return_: float
    max_reward: float | None
    length: int
    clipped: int = 0
    chunks: int = 0
    latency_s: Mapping[str, float] = field(default_factory=dict)
    disagreement: float | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Arm and seed, which tell episodes apart."""
        return self.arm, self.seed

    def to_json(self) -> dict[str, Any]:
        """As a line of ``episodes.jsonl`` holds it."""
        return {_WRITTEN.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        """Of a line of ``episodes.jsonl``; further keys are left out.

        Raises:
            KeyError: If one is missing.
        """
        return cls(**{item.name: line[_WRITTEN.get(item.name, item.name)] for item in fields(cls)})

    def same_course(self, other: EpisodeResult) -> bool:
        """Whether another run of the episode took the same course, as far as the results tell."""
        courses = [(one.success, one.success_at, one.terminated, one.truncated, one.length, one.return_) for one in (self, other)]
        return courses[0] == courses[1]
