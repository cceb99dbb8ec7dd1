"""What ``benchmarks/noisegate.py`` found, and what that can tell: arms, paired differences, tests."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robot.evaluation import PairedOutcomes, holm_adjusted, wilson_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = ["MEASURES", "Arm", "Comparison", "Found", "clustered", "corrected", "merged"]

MEASURES = {"success": "success", "max_reward": "highest reward", "return": "return"}
DRAWS, RESAMPLED = 20_000, 10_000
ALPHA = 0.05

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The episodes of an arm in one stage.

    Attributes:
        name: Of the arm.
        line: As the JSON holds it.
    """

    name: str
    line: dict[str, Any]

    def __len__(self) -> int:
        """Episodes."""
        return len(self.line["seeds"])

    @property
    def successes(self) -> int:
        """Episodes that were solved."""
        return sum(self.line["success"])

    def values(self, measure: str, seeds: Sequence[int] | None = None) -> Numbers:
        """A measure of each episode, in the order of the seeds."""
        by_seed = dict(zip(self.line["seeds"], self.line[measure], strict=True))
        return np.array([by_seed[seed] for seed in (seeds or self.line["seeds"])], dtype=np.float64)

    def per_action(self, stream: str) -> float:
        """Evaluations of a stream of the network per executed action."""
        return float(self.line["per_chunk"][stream] * sum(self.line["chunks"]) / max(1, sum(self.line["length"])))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """First against second on common seeds.

    Attributes:
        first: Name of the first.
        second: Name of the second.
        difference: Mean of first − second.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Of the test that there is none;
        holm: after Holm's correction.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    holm: float = math.nan

    def words(self, *, points: bool, test: bool = True) -> str:
        """Difference and interval, in percentage points or as they are, and the test."""
        scale, form = (100, "+.1f") if points else (1, "+.3g")
        difference, low, high = (format(scale * value, form) for value in (self.difference, self.low, self.high))
        return f"{difference}{' points' if points else ''} [{low}, {high}]" + (f", Holm p = {self.holm:.2g}" if test else "")

    @property
    def verdict(self) -> str:
        """In words."""
        if self.holm < ALPHA and self.low > 0:
            return "beats"
        return "is worse than" if self.holm < ALPHA and self.high < 0 else "does not beat"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything of one task.

    Attributes:
        name: Of the task.
        lines: Merged ones.
    """

    name: str
    lines: list[dict[str, Any]]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """That it ran with."""
        return self.kind("task")[0]["settings"]

    @property
    def primary(self) -> str:
        """What counts."""
        return str(self.settings["primary"])

    @cached_property
    def report(self) -> dict[str, Arm]:
        """Arms on the report seeds."""
        return self.stage("report")

    @cached_property
    def selection(self) -> dict[str, Arm]:
        """Hand-made schedules on the selection seeds."""
        return self.stage("selection")

    @cached_property
    def seeds(self) -> list[int]:
        """Report seeds that every arm has."""
        return sorted(set.intersection(*(set(arm.line["seeds"]) for arm in self.report.values())))

    @cached_property
    def best(self) -> str:
        """The hand-made schedule chosen on the selection seeds; the first of several."""
        return max(self.selection, key=lambda name: self.selection[name].values(self.primary).mean())

    @property
    def hand_made(self) -> list[str]:
        """Names of the hand-made schedules that have been reported."""
        return [name for name in self.selection if name in self.report]

    @cached_property
    def learned(self) -> dict[str, list[str]]:
        """Arms of every way of learning, one per training seed."""
        ways: dict[str, list[str]] = {}
        for name in self.report:
            if name not in self.selection:
                ways.setdefault(name.rpartition(" ")[0], []).append(name)
        return ways

    def kind(self, kind: str) -> list[dict[str, Any]]:
        """Lines of a kind."""
        return [line for line in self.lines if line["kind"] == kind]

    def stage(self, stage: str) -> dict[str, Arm]:
        """Arms of a stage."""
        return {line["arm"]: Arm(name=line["arm"], line=line) for line in self.kind("arm") if line["stage"] == stage}

    def pooled(self, arms: Sequence[str], measure: str) -> Numbers:
        """Mean over arms, for each report seed."""
        return np.mean([self.report[arm].values(measure, self.seeds) for arm in arms], axis=0)

    def interval(self, name: str, measure: str = "success") -> tuple[float, float, float]:
        """Mean and 95 % interval of an arm, or of a way of learning: Wilson's for single success rates, else from resampled seeds."""
        values = self.pooled(self.learned.get(name, [name]), measure)
        single = measure == "success" and name not in self.learned
        low, high = wilson_interval(int(values.sum()), len(values)) if single else clustered(values)
        return float(values.mean()), low, high

    def against(self, way: str, other: str, measure: str) -> Comparison:
        """A way of learning, pooled over its training seeds, against a schedule."""
        difference = self.pooled(self.learned[way], measure) - self.pooled([other], measure)
        low, high = clustered(difference)
        return Comparison(first=way, second=other, difference=float(difference.mean()), low=low, high=high, p=sign_flips(difference))

    def single(self, first: str, second: str) -> Comparison:
        """Success of one arm against another."""
        pair = [self.report[name].values("success", self.seeds).astype(bool).tolist() for name in (first, second)]
        table = PairedOutcomes.of(*pair)
        low, high = table.interval()
        return Comparison(first=first, second=second, difference=table.difference, low=low, high=high, p=table.p_value)


def clustered(values: Numbers) -> tuple[float, float]:
    """95 % interval of the mean: whole seeds are resampled, with all that was measured on them."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLED, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (ALPHA / 2, 1 - ALPHA / 2))
    return float(low), float(high)


def sign_flips(differences: Numbers) -> float:
    """Two-sided randomisation test: without a difference, each seed's could as well have had the other sign."""
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(DRAWS, len(differences)))
    extreme = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9
    return float((1 + extreme.sum()) / (1 + DRAWS))


def corrected(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Holm's correction over all of them."""
    found = list(comparisons)
    return [replace(one, holm=p) for one, p in zip(found, holm_adjusted([one.p for one in found]), strict=True)]


def merged(root: Path, names: Sequence[str], path: Path) -> dict[str, list[dict[str, Any]]]:
    """Lines by task: of the parts, and of an earlier report where there is no part. Written again."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for line in (json.loads(text) for text in (path.read_text(encoding="utf-8").splitlines() if path.exists() else [])):
        tasks.setdefault(line["task"], []).append(line)
    for name in names:
        if (part := root / f"{name}.jsonl").exists():
            content = part.read_text(encoding="utf-8")
            tasks[name] = _joined(name, [json.loads(text) for text in content[: content.rfind("\n") + 1].splitlines()])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for lines in tasks.values() for line in lines), encoding="utf-8")
    return tasks


def _joined(task: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Episodes become columns of the line of their arm; an arm under way is left out."""
    episodes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        if line["kind"] == "episode":
            episodes.setdefault((line["stage"], line["arm"]), []).append(line)
    last = {(line["stage"], line["arm"]): line for line in lines if line["kind"] == "arm"}
    others = [{"task": task} | line for line in lines if line["kind"] not in ("episode", "arm")]
    return others + [{"task": task} | line | _columns(episodes[place]) for place, line in last.items()]


def _columns(episodes: list[dict[str, Any]]) -> dict[str, Any]:
    rows = sorted(episodes, key=lambda line: line["seed"])
    return {
        "seeds": [row["seed"] for row in rows],
        "success": [int(row["success"]) for row in rows],
        "max_reward": [round(row["max_reward"] or 0.0, 5) for row in rows],
        "return": [round(row["return"], 4) for row in rows],
        "length": [row["length"] for row in rows],
        "chunks": [row["chunks"] for row in rows],
        "crashed": sum(row["crashed"] for row in rows),
    }
