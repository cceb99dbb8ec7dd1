"""Search for the weights of a composition on some seeds, and report what they are worth on others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowrl.errors import ConfigError
from robot.envs.base import EnvSource
from robot.evaluation.seeds import check_disjoint, parse_seeds
from robot.evaluation.statistics import null_gain, wilson_interval
from robot.gpc import Composition
from robot.search.choice import best_candidate, smooth_best
from robot.search.multiplicity import luck_on_common_seeds
from robot.search.outcomes import Arm, Baseline
from robot.search.prior import DenoisingPrior, PriorResult
from robot.search.racing import Race, RaceResult, WilsonRace
from robot.search.results import Candidate, CompositionResult, Luck, Selection
from robot.search.run import Contest, conclude, open_contest
from robot.search.simplex import Weights, lattice, weight_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from robot.search.arena import Arena

__all__ = ["CompositionEvaluation", "WeightSearch"]

PAIR = 2
SELECTION = "selection"


@dataclass(frozen=True, kw_only=True)
class CompositionEvaluation:
    """A composition with given weights against each of its parents, on the same seeds and noise.

    Attributes:
        env: The environment.
        composition: Policies, weights, operator.
        run_dir: Folder to write into.
        seeds: Of the episodes: ``"A:B"`` (B left out), several separated by commas, or numbers.
        baselines: Besides the parents: ``uniform`` (equal weights), ``average`` (actions averaged), ``sde`` (each parent with the
            stochastic sampler).
        rows: Environments side by side.
        workers: Processes for them; 0 for this one.
        seed: Of the policies' noise.
        timeout_s: How long a step of the environment may take before it counts as hung, > 0.
        device: Where the policies run; None takes a GPU if there is one.

    Raises:
        ConfigError: If there are fewer than two members, the weights are no shares of one, or the seeds cannot be read.
    """

    env: EnvSource
    composition: Composition
    run_dir: Path
    seeds: str | tuple[int, ...]
    baselines: tuple[Baseline, ...] = ()
    rows: int = 32
    workers: int = 0
    seed: int = 0
    timeout_s: float = 60.0
    device: str | None = None

    def __post_init__(self) -> None:
        _check_composition(self.composition)
        parse_seeds(self.seeds)

    def run(self, *, resume: bool = False) -> CompositionResult:
        """Run the episodes that are missing, and write results, plot and report.

        Args:
            resume: Go on with the episodes in ``run_dir``.

        Raises:
            ConfigError: If the environment cannot run here, or the folder holds episodes already, or those of another configuration.
            CheckpointError: If a checkpoint is not the one that the run began with.
        """
        with open_contest(self, resume=resume) as contest:
            return conclude(contest, self.composition.weights, parse_seeds(self.seeds), None)


@dataclass(frozen=True, kw_only=True)
class WeightSearch:
    """Which weights to compose with, and what they are worth on seeds that had no part in the choice.

    Prior from demonstrations (if any) → race of the candidates on the selection seeds → the best one, every parent and the baselines on
    the report seeds.

    Attributes:
        env: The environment.
        composition: Policies and operator; its weights play no part.
        run_dir: Folder to write into.
        selection_seeds: At most these are used to choose: ``"A:B"`` (B left out), several separated by commas, or numbers.
        report_seeds: For the report; none of the selection seeds.
        step: Of the weight lattice; must divide 1.
        candidates: Weights to try instead of the lattice.
        race: Who is tried on how many seeds.
        prior: Weights from demonstrations, which may narrow the candidates.
        baselines: Besides the parents: ``uniform`` (equal weights), ``average`` (actions averaged), ``sde`` (each parent with the
            stochastic sampler).
        rows: Environments side by side; many weights share a batch.
        workers: Processes for them; 0 for this one.
        seed: Of the policies' noise.
        timeout_s: How long a step of the environment may take before it counts as hung, > 0.
        device: Where the policies run; None takes a GPU if there is one.

    Raises:
        ConfigError: If the seeds overlap or cannot be read, there are fewer than two members, the step does not divide 1, a candidate is
            not on the simplex, or the operator takes no weights.
    """

    env: EnvSource
    composition: Composition
    run_dir: Path
    selection_seeds: str | tuple[int, ...]
    report_seeds: str | tuple[int, ...]
    step: float = 0.1
    candidates: tuple[tuple[float, ...], ...] = ()
    race: Race = WilsonRace()  # noqa: RUF009 - frozen
    prior: DenoisingPrior | None = None
    baselines: tuple[Baseline, ...] = ("uniform", "average", "sde")
    rows: int = 32
    workers: int = 0
    seed: int = 0
    timeout_s: float = 60.0
    device: str | None = None

    def __post_init__(self) -> None:
        _check_composition(self.composition, with_weights=False)
        check_disjoint(parse_seeds(self.selection_seeds), parse_seeds(self.report_seeds))
        if self.composition.operator in ("and", "average"):
            raise ConfigError(f"the operator {self.composition.operator!r} has no weights to search for; take convex, fkc or or")
        for weights in self.grid:
            _check_weights(weights, len(self.composition.members))
        if len({weight_label(weights) for weights in self.grid}) < len(self.grid):
            raise ConfigError(f"two candidates are equal to the digits under which episodes are kept: {self.grid}; give each once")

    @property
    def grid(self) -> list[Weights]:
        """The candidates before any prior."""
        return [tuple(weights) for weights in self.candidates] or lattice(len(self.composition.members), self.step)

    def fixed(self, seeds: str | tuple[int, ...] | None = None) -> CompositionEvaluation:
        """The composition's own weights against its parents, in a folder ``fixed`` of the run's.

        Args:
            seeds: Of the episodes; None for the report seeds.
        """
        return CompositionEvaluation(
            env=self.env,
            composition=self.composition,
            run_dir=Path(self.run_dir) / "fixed",
            seeds=self.report_seeds if seeds is None else seeds,
            baselines=self.baselines,
            rows=self.rows,
            workers=self.workers,
            seed=self.seed,
            timeout_s=self.timeout_s,
            device=self.device,
        )

    def run(self, *, resume: bool = False) -> CompositionResult:
        """Search, then report; a search that was stopped loses no episode.

        Args:
            resume: Go on with the episodes in ``run_dir``.

        Raises:
            ConfigError: If the environment cannot run here, or the folder holds episodes already, or those of another configuration.
            CheckpointError: If a checkpoint is not the one that the run began with.
        """
        with open_contest(self, resume=resume) as contest:
            prior = None if self.prior is None else self.prior.run(contest.policy)
            candidates = self.grid if self.prior is None or prior is None else self.prior.near(self.grid, prior.weights)
            selection = self._select(contest, candidates, prior)
            return conclude(contest, selection.chosen, parse_seeds(self.report_seeds), selection)

    def _select(self, contest: Contest, candidates: list[Weights], prior: PriorResult | None) -> Selection:
        arms = [Arm(role="candidate", weights=weights) for weights in candidates]
        seeds = parse_seeds(self.selection_seeds)
        found = self.race.run(len(arms), seeds, lambda chosen, on: _outcomes(contest.arena, [arms[index] for index in chosen], on))
        best = found.survivors[best_candidate([candidates[i] for i in found.survivors], [found.rates[i] for i in found.survivors])]
        pair = len(candidates[0]) == PAIR
        return Selection(
            seeds=len(seeds),
            race=type(self.race).__name__,
            episodes=found.episodes,
            exhaustive_episodes=len(arms) * len(seeds),
            candidates=tuple(_candidate(candidates, found, index) for index in range(len(arms))),
            chosen=candidates[best],
            rate=found.rates[best],
            smooth_best=smooth_best([weights[0] for weights in candidates], found.successes, found.trials) if pair else None,
            prior=prior,
            luck=self._luck(contest, arms, found),
        )

    def _luck(self, contest: Contest, arms: Sequence[Arm], found: RaceResult) -> Luck:
        """If all were as good as those never dropped are on average."""
        trials = max(found.trials)
        together = _outcomes(contest.arena, [arms[index] for index in found.survivors], parse_seeds(self.selection_seeds)[:trials])
        rate = float(together.mean())
        return Luck(
            candidates=len(arms),
            trials=trials,
            rate=rate,
            independent=null_gain(len(arms), rate, trials),
            common_seeds=luck_on_common_seeds(together, seed=self.seed),
        )


def _outcomes(arena: Arena, arms: Sequence[Arm], seeds: Sequence[int]) -> NDArray[np.bool_]:
    """Success ``(arm, seed)`` on selection seeds."""
    results = arena.play(SELECTION, arms, seeds)
    return np.array([[result.success for result in results[arm]] for arm in arms])


def _candidate(candidates: Sequence[Weights], found: RaceResult, index: int) -> Candidate:
    return Candidate(
        weights=candidates[index],
        successes=found.successes[index],
        trials=found.trials[index],
        interval=wilson_interval(found.successes[index], found.trials[index]),
        survived=index in found.survivors,
    )


def _check_composition(composition: Composition, *, with_weights: bool = True) -> None:
    if len(composition.members) < PAIR:
        raise ConfigError(f"a composition needs two members or more, got {len(composition.members)}")
    if with_weights:
        _check_weights(composition.weights, len(composition.members))


def _check_weights(weights: Weights, members: int) -> None:
    if len(weights) != members or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:  # noqa: PLR2004
        raise ConfigError(f"weights must be >= 0 and sum to one, one for each of the {members} members, got {list(weights)}")
