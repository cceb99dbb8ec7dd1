"""Runs arms on seeds, each episode once, candidate weights batched over the environments."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Self

from tqdm.auto import tqdm

from robot.evaluation.episodes import Job
from robot.evaluation.rollout import run_episodes
from robot.search.simplex import uniform

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from robot.evaluation.episodes import EpisodeResult
    from robot.evaluation.log import EpisodeLog
    from robot.evaluation.pool import EnvPool
    from robot.gpc import GPCPolicy
    from robot.search.outcomes import Arm

__all__ = ["Arena"]


class _Style(NamedTuple):
    """What arms must have in common to share a batch.

    Members without weight are not called, and who takes part decides on noise levels and units: with equal support in a batch, an
    episode does not depend on its neighbours.
    """

    operator: str
    stochastic: bool
    support: tuple[bool, ...]


class Arena:
    """Environments, composed policies, and the log of what they did."""

    def __init__(self, pool: EnvPool, policy: GPCPolicy, log: EpisodeLog, *, seed: int = 0) -> None:
        """Nothing runs yet.

        Args:
            pool: The environments; closed when the arena is left.
            policy: The composed policies. All arms execute the same number of actions of a chunk: the fewest of any member, unless the
                composition says otherwise.
            log: Episodes that are there already, and where new ones go.
            seed: Of the policies' noise, together with the episode's seed; all arms get the same.
        """
        self._pool, self._log, self._seed = pool, log, seed
        self._started = time.perf_counter() - log.seconds
        self._policy = replace(policy, weights=uniform(len(policy.policies)))
        self.ran = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.close()

    @property
    def seconds(self) -> float:
        """Wall time over all sittings."""
        return time.perf_counter() - self._started

    def play(self, phase: str, arms: Sequence[Arm], seeds: Sequence[int]) -> dict[Arm, list[EpisodeResult]]:
        """Every arm on every seed; what the log holds is not run again.

        Args:
            phase: What the episodes are for, for the progress bar.
            arms: Ways to act.
            seeds: Of the episodes.

        Returns:
            By arm, in the order of the seeds.
        """
        missing = {arm: [seed for seed in seeds if (arm.name, seed) not in self._log.results] for arm in arms}
        total = sum(map(len, missing.values()))
        if total:
            with tqdm(total=total, desc=phase, unit="episode") as bar:
                for style in dict.fromkeys(map(self._style, arms)):
                    self._run(style, {arm: missing[arm] for arm in arms if self._style(arm) == style}, bar)
        return {arm: [self._log.results[arm.name, seed] for seed in seeds] for arm in arms}

    def _run(self, style: _Style, missing: dict[Arm, list[int]], bar: tqdm[None]) -> None:
        """Arms that share batches; seeds outside, arms inside: a batch holds many weights of few seeds."""
        wanted = sorted(((seed, arm) for arm, seeds in missing.items() for seed in seeds), key=lambda pair: pair[0])
        jobs = [Job(seed=seed, arm=arm.name, weights=arm.weights) for seed, arm in wanted]

        def note(result: EpisodeResult) -> None:
            self._log.write(result, self.seconds)
            self.ran += 1
            bar.update()

        if jobs:
            run_episodes(self._pool, self._styled(style), jobs, on_episode=note, seed=self._seed)

    def _style(self, arm: Arm) -> _Style:
        operators = {"parent": "convex", "sde": "convex", "average": "average"}
        alone = max(arm.weights) == 1  # a candidate that is a parent acts as that parent, under whose name the report runs it
        operator = operators.get(arm.role, "convex" if alone else self._policy.operator)
        return _Style(operator, arm.role == "sde", tuple(weight > 0 for weight in arm.weights))

    def _styled(self, style: _Style) -> GPCPolicy:
        """The same policies under another operator or sampler."""
        sampling = self._policy.sampling
        if style.stochastic and sampling is not None:
            sampling = replace(sampling, sampler="sde")
        return replace(self._policy, operator=style.operator, sampling=sampling)
