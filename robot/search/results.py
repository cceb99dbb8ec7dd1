"""What a search or a comparison found, as ``results.json`` holds it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowrl.train.whole import write_whole
from robot.search.outcomes import Outcome
from robot.search.prior import PriorResult
from robot.search.signal import DisagreementSignal
from robot.search.simplex import Weights

__all__ = ["RESULTS_FILE", "Candidate", "CompositionResult", "Luck", "Selection"]

RESULTS_FILE = "results.json"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One weight on the selection seeds.

    Attributes:
        weights: Of the members.
        successes: Episodes that succeeded.
        trials: Episodes.
        interval: 95 % Wilson.
        survived: Whether it was never dropped.
    """

    weights: Weights
    successes: int
    trials: int
    interval: tuple[float, float]
    survived: bool

    @property
    def rate(self) -> float:
        """Success rate."""
        return self.successes / self.trials


@dataclass(frozen=True, kw_only=True)
class Luck:
    """How far the best of the candidates would lie above the truth if the weight did not matter.

    Attributes:
        candidates: How many were tried.
        trials: Of each that was never dropped.
        rate: Taken for the truth: the mean of those that were never dropped, on the selection seeds.
        independent: With seeds of their own: an upper bound.
        common_seeds: As they ran, by exchanging candidates within each seed; only those never dropped.
    """

    candidates: int
    trials: int
    rate: float
    independent: float
    common_seeds: float


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How the weights were chosen.

    Attributes:
        seeds: How many there were to use.
        race: The plan of trials, by its class.
        episodes: That it took.
        exhaustive_episodes: That the whole grid would have taken.
        candidates: All that were tried.
        chosen: The best weights, ties resolved.
        rate: Their success rate on the selection seeds.
        smooth_best: Two members only: the first one's weight at the maximum of a parabola fitted to the logit of success.
        prior: Weights from demonstrations; None if not asked for.
        luck: Of the best of so many.
    """

    seeds: int
    race: str
    episodes: int
    exhaustive_episodes: int
    candidates: tuple[Candidate, ...]
    chosen: Weights
    rate: float
    smooth_best: float | None
    prior: PriorResult | None
    luck: Luck


@dataclass(frozen=True, kw_only=True)
class CompositionResult:
    """What a search, or the evaluation of fixed weights, found.

    Attributes:
        run_dir: Where everything lies.
        env: The task's name.
        members: Names of the policies.
        operator: How they were composed.
        weights: That were judged.
        report_seeds: How many.
        outcomes: Every arm on the report seeds.
        selection: How the weights were chosen; None for fixed ones.
        signal: Whether disagreement is larger in the composition's failures; None where it cannot be told.
        identity: Configuration, checkpoints by their SHA-256, revision of the code.
        ran: Episodes of this sitting; the others were there.
        seconds: Wall time over all sittings.
    """

    run_dir: Path
    env: str
    members: tuple[str, ...]
    operator: str
    weights: Weights
    report_seeds: int
    outcomes: tuple[Outcome, ...]
    selection: Selection | None
    signal: DisagreementSignal | None
    identity: Mapping[str, Any]
    ran: int
    seconds: float

    @property
    def judged(self) -> Outcome:
        """The composition on the report seeds; a parent's outcome where the weights are a parent's."""
        return next(row for row in self.outcomes if row.arm.role in ("composed", "parent") and row.arm.weights == self.weights)

    @property
    def best_parent(self) -> Outcome:
        """That all are compared with."""
        return next(row for row in self.outcomes if row.arm.role == "parent" and row.against is None)

    def save(self) -> Path:
        """Write ``results.json``; the rates are written out beside the counts."""
        content = asdict(self) | {"run_dir": str(self.run_dir)}
        if self.selection is not None:
            content["selection"]["candidates"] = [asdict(row) | {"rate": row.rate} for row in self.selection.candidates]
        return write_whole(self.run_dir / RESULTS_FILE, json.dumps(_plain(content), indent=2) + "\n")


def _plain(value: Any) -> Any:
    """JSON without NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
