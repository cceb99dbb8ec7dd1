"""What many episodes amount to: one row per arm, and pairs of arms on common seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flowrl.errors import ConfigError
from robot.evaluation.statistics import PairedOutcomes, wilson_interval

if TYPE_CHECKING:
    from robot.evaluation.episodes import EpisodeResult

__all__ = ["ArmSummary", "Comparison", "compare", "summarise"]


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """The episodes of one arm.

    Attributes:
        arm: Its name.
        episodes: How many ended, crashed ones among them.
        successes: In how many the task was solved at any control step.
        success_rate: Their share, in [0, 1].
        wilson_95: Its 95 % interval.
        successes_at_end: In how many it was solved after the last control step.
        terminated: How many the task ended.
        truncated: How many the time limit ended.
        crashed: How many ended by neither; they count as no success.
        clipped_steps: Control steps whose action was clipped to the action space.
        mean_return: Sum of rewards per episode, the environment's unit.
        mean_length: Control steps per episode.
        mean_steps_to_success: Control steps until the task was solved, over the successes; None without any.
        chunks: How often the policy was asked.
        latency_s: Mean seconds per chunk in each member's network; a batch shares its time evenly.
        disagreement: Mean over the episodes, nats; None for single policies.
    """

    arm: str
    episodes: int
    successes: int
    success_rate: float
    wilson_95: tuple[float, float]
    successes_at_end: int
    terminated: int
    truncated: int
    crashed: int
    clipped_steps: int
    mean_return: float
    mean_length: float
    mean_steps_to_success: float | None
    chunks: int
    latency_s: Mapping[str, float]
    disagreement: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two arms on the seeds that both ran; the difference is first − second.

    Attributes:
        first: Name of the first arm.
        second: Name of the second arm.
        seeds: The common seeds, ascending.
        table: On how many of them which arm succeeded.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    table: PairedOutcomes

    def to_json(self) -> dict[str, Any]:
        """With the test and the interval."""
        low, high = self.table.interval()
        return {
            "first": self.first,
            "second": self.second,
            "common_seeds": len(self.seeds),
            **asdict(self.table),
            "difference": self.table.difference,
            "difference_95": [low, high],
            "mcnemar_p": self.table.p_value,
        }


def summarise(results: Sequence[EpisodeResult], arm: str = "policy") -> ArmSummary:
    """Count the episodes of one arm.

    Args:
        results: Of any arms.
        arm: Which to count.

    Raises:
        ValueError: If there is none of that arm.
    """
    mine = [result for result in results if result.arm == arm]
    if not mine:
        raise ValueError(f"there is no episode of {arm!r}; there are episodes of {sorted({result.arm for result in results})}")
    successes = sum(result.success for result in mine)
    steps = [result.success_at for result in mine if result.success_at is not None]
    disagreements = [result.disagreement for result in mine if result.disagreement is not None]
    return ArmSummary(
        arm=arm,
        episodes=len(mine),
        successes=successes,
        success_rate=successes / len(mine),
        wilson_95=wilson_interval(successes, len(mine)),
        successes_at_end=sum(result.success_at_end for result in mine),
        terminated=sum(result.terminated for result in mine),
        truncated=sum(result.truncated for result in mine),
        crashed=sum(result.crashed for result in mine),
        clipped_steps=sum(result.clipped for result in mine),
        mean_return=_mean([result.return_ for result in mine]),
        mean_length=_mean([result.length for result in mine]),
        mean_steps_to_success=_mean(steps) if steps else None,
        chunks=sum(result.chunks for result in mine),
        latency_s=_latency(mine),
        disagreement=_mean(disagreements) if disagreements else None,
    )


def compare(first: Sequence[EpisodeResult], second: Sequence[EpisodeResult], *, names: tuple[str, str]) -> Comparison:
    """Pair two arms by their seeds.

    Args:
        first: Results of the first arm.
        second: Results of the second arm.
        names: Of both.

    Raises:
        ConfigError: If they have no seed in common.
    """
    outcomes = [{result.seed: result.success for result in results} for results in (first, second)]
    seeds = tuple(sorted(outcomes[0].keys() & outcomes[1].keys()))
    if not seeds:
        spans = [f"{min(found)} to {max(found)}" if found else "none" for found in outcomes]
        raise ConfigError(
            f"{names[0]} (seeds {spans[0]}) and {names[1]} (seeds {spans[1]}) have no seed in common; a paired comparison needs both on "
            "the same seeds"
        )
    table = PairedOutcomes.of(*([found[seed] for seed in seeds] for found in outcomes))
    return Comparison(first=names[0], second=names[1], seeds=seeds, table=table)


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def _latency(results: Sequence[EpisodeResult]) -> dict[str, float]:
    """Per member, weighted by chunks."""
    names = dict.fromkeys(name for result in results for name in result.latency_s)
    means = {}
    for name in names:
        timed = [(result.latency_s[name], result.chunks) for result in results if name in result.latency_s and result.chunks]
        chunks = sum(count for _, count in timed)
        if chunks:
            means[name] = sum(seconds * count for seconds, count in timed) / chunks
    return means
