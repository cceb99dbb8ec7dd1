"""What an update learns from: rollouts in the environment, or chunks of the warm-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from flowrl.shapes import seeded_generator
from robot.evaluation.episodes import Job
from robot.evaluation.pool import EnvPool
from robot.evaluation.rollout import run_episodes
from robot.evaluation.seeds import parse_seeds
from robot.gating.gate import Gate
from robot.gating.noise import ExplorationNoise
from robot.gating.proxy import HeldOut
from robot.gating.rollouts import Experience, Explorer
from robot.gating.scores import Scores, shared_out
from robot.gating.training import GateTraining
from robot.gating.watch import schedule_metrics
from robot.learning.material import Batches
from robot.world_action import WorldActionModel

if TYPE_CHECKING:
    from robot.evaluation.episodes import EpisodeResult

__all__ = ["Collected", "Collector"]

_STREAM = 19  # tells these draws from others with the same seed


@dataclass(frozen=True, kw_only=True)
class Collected:
    """One rollout.

    Attributes:
        experience: What to learn from.
        metrics: About it.
        counts: What it adds to the run's totals.
    """

    experience: Experience
    metrics: Mapping[str, Any]
    counts: Mapping[str, float]


@dataclass(kw_only=True, eq=False)
class Collector:
    """Rolls a gate out in groups.

    Attributes:
        job: The configuration.
        model: The world-action model.
        gate: Explores in its present weights.
        pool: The environments.
        heed: Called before every chunk; may raise to stop.
        show: Called with words on how far the rollout is.
    """

    job: GateTraining
    model: WorldActionModel
    gate: Gate
    pool: EnvPool
    heed: Callable[[], None]
    show: Callable[[str], None]

    def collect(self, update: int) -> Collected:
        """The rollout of an update; the same whenever it is asked for, as long as the gate's weights are.

        Args:
            update: Its number, from 0.
        """
        job, warm = self.job, update < self.job.warm_up_updates
        noise = ExplorationNoise(
            seed=job.seed,
            update=update,
            steps=self.gate.steps,
            columns=self.gate.columns,
            hold=job.hold,
            antithetic=job.antithetic,
            correlation=job.correlation,
        )
        explorer = Explorer(model=self.model, gate=self.gate, noise=noise, heed=self.heed)
        results = [] if warm else self._play(explorer, update)
        scores = self._held_out.play(explorer, update, job.group_size) if warm else Scores.of(results, job.reward, job.group_size)
        return self._collected(explorer, scores, results)

    def _play(self, explorer: Explorer, update: int) -> list[EpisodeResult]:
        """Every group of the update: one seed, one base noise, several variations."""
        job = self.job
        seeds = [self._seeds[row] for row in self._batches.rows(update - job.warm_up_updates).tolist()]
        jobs = [
            Job(seed=seed, variation=slot * job.group_size + member) for slot, seed in enumerate(seeds) for member in range(job.group_size)
        ]
        base = seeded_generator(job.seed, _STREAM, update).initial_seed()
        done: list[bool] = []

        def note(result: EpisodeResult) -> None:
            done.append(result.success)
            self.show(f"episode {len(done)}/{len(jobs)}, solved {sum(done)}")

        return run_episodes(self.pool, explorer, jobs, on_episode=note, seed=base)

    def _collected(self, explorer: Explorer, scores: Scores, results: list[EpisodeResult]) -> Collected:
        job, (keys, record) = self.job, explorer.recorded()
        members = torch.tensor([key.variation for key in keys])
        advantage = shared_out(scores.advantages(job.advantage), members, per_episode=bool(results) and job.hold == "episode")
        control_steps = sum(result.length for result in results)
        tally = explorer.tally
        metrics: dict[str, Any] = {
            "phase": "rollout" if results else "warm_up",
            **scores.metrics(),
            **(_outcomes(results) if results else {}),
            **schedule_metrics(record.times, record.multipliers[..., : self.gate.frames]),
            **{f"evaluations/{name}_per_chunk": value for name, value in tally.per(tally.chunks).items()},
            **({f"evaluations/{name}_per_action": value for name, value in tally.per(control_steps).items()} if results else {}),
        }
        counts = {
            "episodes": len(results),
            "control_steps": control_steps,
            "chunks": tally.chunks,
            "network_evaluations": tally.video + tally.action,
        }
        experience = Experience(record=record, advantage=advantage.to(record.decisions.device))
        return Collected(experience=experience, metrics=metrics, counts=counts)

    @cached_property
    def _seeds(self) -> tuple[int, ...]:
        return parse_seeds(self.job.seeds)

    @cached_property
    def _batches(self) -> Batches:
        return Batches(len(self._seeds), self.job.groups, self.job.seed)

    @cached_property
    def _held_out(self) -> HeldOut:
        if self.job.warm_up is None:
            raise ValueError("there is no warm-up")
        return HeldOut(self.job.warm_up, self.model, seed=self.job.seed, rows=self.job.rows)


def _outcomes(results: list[EpisodeResult]) -> dict[str, float]:
    """Of the explored episodes."""
    count = len(results)
    rewards = [result.max_reward for result in results if result.max_reward is not None]
    return {
        "success": sum(result.success for result in results) / count,
        "max_reward": sum(rewards) / max(1, len(rewards)),
        "length": sum(result.length for result in results) / count,
        "crashed": sum(result.crashed for result in results) / count,
    }
