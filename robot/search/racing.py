"""Who is tried on how many seeds: every candidate on all of them, or a race that drops the hopeless early.

All candidates of a round run on the same seeds (common random numbers), and a round's seeds are the next of the list: what a candidate
has been tried on is always a prefix of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robot.evaluation.statistics import wilson_interval

__all__ = ["Exhaustive", "Race", "RaceResult", "Round", "SuccessiveHalving", "TryOut", "WilsonRace"]

TryOut: TypeAlias = Callable[[Sequence[int], Sequence[int]], NDArray[np.bool_]]
"""Runs candidates (by index) on seeds: ``(candidates, seeds) -> success (candidate, seed)``."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of a race.

    Attributes:
        candidates: Indices of those that ran.
        seeds: On which.
        survivors: Indices of those that stay.
    """

    candidates: tuple[int, ...]
    seeds: tuple[int, ...]
    survivors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RaceResult:
    """What a race found.

    Attributes:
        successes: Of every candidate.
        trials: Of every candidate.
        survivors: Indices of the candidates that were never dropped; all of them have the same, largest number of trials.
        rounds: In order.
    """

    successes: tuple[int, ...]
    trials: tuple[int, ...]
    survivors: tuple[int, ...]
    rounds: tuple[Round, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """Success rate of every candidate; NaN without a trial."""
        return tuple(k / n if n else float("nan") for k, n in zip(self.successes, self.trials, strict=True))

    @property
    def episodes(self) -> int:
        """Episodes that the race took."""
        return sum(self.trials)


@runtime_checkable
class Race(Protocol):
    """A plan of trials."""

    def run(self, candidates: int, seeds: Sequence[int], try_out: TryOut) -> RaceResult:
        """Try candidates out until the plan ends.

        Args:
            candidates: How many there are, at least 1.
            seeds: At most these are used, in order.
            try_out: Runs candidates on seeds.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Exhaustive:
    """Every candidate on every seed: what a grid search does."""

    def run(self, candidates: int, seeds: Sequence[int], try_out: TryOut) -> RaceResult:
        """Try all of them on all seeds, in one round."""
        tally = _Tally(candidates, seeds)
        tally.round(len(seeds), try_out)
        return tally.result()


@dataclass(frozen=True, kw_only=True)
class WilsonRace:
    """After each batch of seeds, drop a candidate whose Wilson interval lies wholly below that of another.

    The intervals are those of a single look. A race looks many times, so the chance to drop the best one is not ``1 − confidence``;
    benchmarks/compose_cost.py measures what a race costs and what it finds.

    Attributes:
        batch: Seeds per round, at least 1.
        confidence: Of the intervals, in (0, 1).

    Raises:
        ValueError: If one is out of range.
    """

    batch: int = 20
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 < self.confidence < 1:
            raise ValueError(f"a race needs batch >= 1 and confidence in (0, 1), got {self.batch} and {self.confidence}")

    def run(self, candidates: int, seeds: Sequence[int], try_out: TryOut) -> RaceResult:
        """Race until one is left or the seeds are used up."""
        tally = _Tally(candidates, seeds)
        while tally.goes_on:
            tally.round(self.batch, try_out)
            bounds = {index: wilson_interval(tally.successes[index], tally.tried, self.confidence) for index in tally.alive}
            bar = max(low for low, _ in bounds.values())
            tally.keep([index for index, (_, high) in bounds.items() if high >= bar])
        return tally.result()


@dataclass(frozen=True, kw_only=True)
class SuccessiveHalving:
    """Keep the better share after each round, and double the seeds (Karnin et al., ICML 2013; here with seeds in common).

    Attributes:
        first: Seeds of the first round, at least 1; after round ``r`` the survivors have been tried on ``first·2^r``.
        keep: Share of the candidates that stays, in (0, 1). Those tied with the best all stay; of those tied at a lower cut, as many as
            there are places, evenly spread.

    Raises:
        ValueError: If one is out of range.
    """

    first: int = 20
    keep: float = 0.5

    def __post_init__(self) -> None:
        if self.first < 1 or not 0 < self.keep < 1:
            raise ValueError(f"successive halving needs first >= 1 and keep in (0, 1), got {self.first} and {self.keep}")

    def run(self, candidates: int, seeds: Sequence[int], try_out: TryOut) -> RaceResult:
        """Halve until one is left or the seeds are used up."""
        tally = _Tally(candidates, seeds)
        while tally.goes_on:
            tally.round(tally.tried or self.first, try_out)
            tally.keep(_better(tally.alive, tally.successes, max(1, round(self.keep * len(tally.alive)))))
        return tally.result()


def _better(alive: Sequence[int], successes: Sequence[int], places: int) -> list[int]:
    """Those above the cut, and those on it as far as there are places."""
    ranked = sorted((successes[index] for index in alive), reverse=True)
    above = [index for index in alive if successes[index] > ranked[places - 1]]
    tied = [index for index in alive if successes[index] == ranked[places - 1]]
    left = len(tied) if not above else places - len(above)
    stride = len(tied) / left
    return sorted([*above, *(tied[int((place + 0.5) * stride)] for place in range(left))])


@dataclass
class _Tally:
    """The state of a race."""

    candidates: int
    seeds: Sequence[int]
    rounds: list[Round] = field(default_factory=list)
    tried: int = 0

    def __post_init__(self) -> None:
        if self.candidates < 1 or not self.seeds:
            raise ValueError(f"a race needs candidates and seeds, got {self.candidates} candidates and {len(self.seeds)} seeds")
        self.alive = list(range(self.candidates))
        self.successes, self.trials = [0] * self.candidates, [0] * self.candidates

    @property
    def goes_on(self) -> bool:
        """Whether another round can tell anything."""
        return self.tried < len(self.seeds) and (len(self.alive) > 1 or not self.tried)

    def round(self, count: int, try_out: TryOut) -> None:
        """Run those alive on the next seeds."""
        seeds = tuple(self.seeds[self.tried : self.tried + count])
        outcomes = np.asarray(try_out(tuple(self.alive), seeds), dtype=bool)
        if outcomes.shape != (len(self.alive), len(seeds)):
            raise ValueError(f"{len(self.alive)} candidates on {len(seeds)} seeds gave outcomes of shape {outcomes.shape}")
        for index, row in zip(self.alive, outcomes, strict=True):
            self.successes[index] += int(row.sum())
            self.trials[index] += len(seeds)
        self.tried += len(seeds)
        self.rounds.append(Round(candidates=tuple(self.alive), seeds=seeds, survivors=tuple(self.alive)))

    def keep(self, survivors: list[int]) -> None:
        """Drop the others, from the last round on."""
        self.alive = survivors
        self.rounds[-1] = Round(candidates=self.rounds[-1].candidates, seeds=self.rounds[-1].seeds, survivors=tuple(survivors))

    def result(self) -> RaceResult:
        """What was found so far."""
        return RaceResult(
            successes=tuple(self.successes), trials=tuple(self.trials), survivors=tuple(self.alive), rounds=tuple(self.rounds)
        )
