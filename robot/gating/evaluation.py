"""The gate against the shared schedule, on the same seeds and from the same noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flowrl.train.paired import paired_difference
from robot.evaluation.episodes import Job
from robot.evaluation.log import EpisodeLog
from robot.evaluation.pool import EnvPool
from robot.evaluation.rollout import run_episodes
from robot.evaluation.summary import compare, summarise
from robot.gating.watch import Watch
from robot.world_action import WorldActionModel
from samplers import PerTokenSchedule

if TYPE_CHECKING:
    from robot.evaluation.episodes import EpisodeResult
    from robot.gating.gate import Gate

__all__ = ["EVALUATION_FILE", "SHARED", "Evaluator", "arm_of"]

EVALUATION_FILE = "evaluation.jsonl"
SHARED = "shared"


def arm_of(update: int) -> str:
    """Name of the gate's episodes after so many updates."""
    return f"update {update}"


@dataclass(kw_only=True, eq=False)
class Evaluator:
    """Runs a schedule on the evaluation seeds; an episode that the folder holds already is not run again.

    Attributes:
        folder: Of the run.
        model: The world-action model.
        pool: The environments.
        seeds: Of the episodes.
        seed: Of the base noise.
        heed: Called after each episode; may raise to stop.
    """

    folder: Path
    model: WorldActionModel
    pool: EnvPool
    seeds: tuple[int, ...]
    seed: int
    heed: Callable[[], None] = lambda: None

    def run(self, gate: Gate, update: int, *, fresh: bool = False) -> dict[str, Any]:
        """Evaluate the mean decisions of a gate.

        Args:
            gate: In the weights that are to be evaluated.
            update: Updates behind it.
            fresh: Whether it still is the shared schedule; then only that is run.

        Returns:
            ``success`` with its Wilson interval, ``shared/success``, their paired ``difference`` with interval and test, the same for the
            highest reward, the gate's mean ``times`` over the steps, and evaluations of the network per executed action.
        """
        table = PerTokenSchedule.shared(gate.steps, gate.frames, shift=gate.settings.shift)
        shared = self._shared(table)
        if fresh:
            times = table.times()[:, 0].tolist()
            return _line(shared, shared) | {"times": times, "final_time": times[-1]}
        watch = Watch(schedule=gate)
        jobs = [Job(seed=seed, arm=arm_of(update)) for seed in self.seeds]
        mine = run_episodes(self.pool, self.model.with_schedule(watch), jobs, on_episode=lambda _: self.heed(), seed=self.seed)
        log = EpisodeLog(self.folder / EVALUATION_FILE)
        for result in mine:
            log.write(result, 0.0)
        evaluations = watch.tally.per(sum(result.length for result in mine))
        return (
            _line(mine, shared)
            | {"times": watch.times, "final_time": watch.times[-1]}
            | {f"evaluations/{name}_per_action": value for name, value in evaluations.items()}
        )

    def _shared(self, table: PerTokenSchedule) -> list[EpisodeResult]:
        """Run once; what an interruption left is gone on with."""
        log = EpisodeLog(self.folder / EVALUATION_FILE)
        jobs = [Job(seed=seed, arm=SHARED) for seed in self.seeds if (SHARED, seed) not in log.results]

        def note(result: EpisodeResult) -> None:
            log.write(result, 0.0)
            self.heed()

        if jobs:
            run_episodes(self.pool, self.model.with_schedule(table), jobs, on_episode=note, seed=self.seed)
        return [log.results[SHARED, seed] for seed in self.seeds]


def _line(mine: list[EpisodeResult], shared: list[EpisodeResult]) -> dict[str, Any]:
    """Both arms, and what lies between them."""
    arms = {"": summarise(mine, mine[0].arm), "shared/": summarise(shared, SHARED)}
    comparison = compare(mine, shared, names=("gate", SHARED)).to_json()
    line: dict[str, Any] = {"episodes": len(mine), "crashed": arms[""].crashed}
    for prefix, arm in arms.items():
        line |= {f"{prefix}success": arm.success_rate, f"{prefix}success_95": list(arm.wilson_95)}
    kept = ("difference", "difference_95", "mcnemar_p", "only_first", "only_second")
    return line | {name: comparison[name] for name in kept} | _reward_difference(mine, shared)


def _reward_difference(mine: list[EpisodeResult], shared: list[EpisodeResult]) -> dict[str, Any]:
    """Of the highest reward of an episode: on PushT the best coverage."""
    pairs = [(a.max_reward, b.max_reward) for a, b in zip(mine, shared, strict=True)]
    kept = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(kept) <= 1:
        return {}
    found = paired_difference(*(torch.tensor(values, dtype=torch.float64) for values in ([b for _, b in kept], [a for a, _ in kept])))
    return {
        "max_reward": found.after,
        "shared/max_reward": found.before,
        "max_reward_difference": found.difference,
        "max_reward_difference_ci95": found.ci95,
    }
