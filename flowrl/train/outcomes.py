"""The outcome of a run in a few rows, and the signs that its reward was gamed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from flowrl.train.evaluation_result import MONITORS, EvaluationResult, evaluation_folder
from flowrl.train.figures import words
from flowrl.train.paired import spread_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from flowrl.train.paired import PairedDifference
    from flowrl.train.record import RunRecord

__all__ = ["Outcome", "compared", "outcomes", "warnings"]

COLLAPSED = 0.5  # of the diversity before training
NOTABLE = 0.1  # standard deviations over images; with many images an interval tells 0 from far smaller changes
DRIFTED = 0.5  # relative change of an image statistic


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One score before and after training.

    Attributes:
        name: Reward part or monitor.
        role: In training, held out from it, or a statistic of the pictures.
        before: Mean before training.
        after: Mean of the last evaluation; None if there was one evaluation only.
        difference: Mean change; None without a second evaluation.
        ci95: Half-width of its 95 % interval; None for monitors.
        win_rate: Share of images that scored higher after, in [0, 1]; None where images could not be paired.
        spread: Standard deviation of the score over images, before and after together; None where it is not known, and for monitors.
    """

    name: str
    role: Literal["trained", "held out", "monitor"]
    before: float
    after: float | None = None
    difference: float | None = None
    ci95: float | None = None
    win_rate: float | None = None
    spread: float | None = None

    @property
    def label(self) -> str:
        """The name as tables show it; a monitor is told apart from a score of the same name."""
        return "pixel diversity" if self.role == "monitor" and self.name == "diversity" else words(self.name)

    @property
    def notable(self) -> bool:
        """Whether the change is at least a tenth of a standard deviation over images."""
        return self.difference is not None and abs(self.difference) >= NOTABLE * (self.spread or 0.0)

    @property
    def rose(self) -> bool:
        """Whether the interval lies above 0."""
        return self.difference is not None and self.ci95 is not None and self.difference > self.ci95

    @property
    def fell(self) -> bool:
        """Whether the interval lies below 0."""
        return self.difference is not None and self.ci95 is not None and self.difference < -self.ci95


def outcomes(record: RunRecord) -> list[Outcome]:
    """Return one row per score and monitor, first evaluation against last; no rows without an evaluation.

    Intervals are paired, image by image, where the run kept both evaluations' scores; else the two means are taken as independent and
    their half-widths add in quadrature.
    """
    if not record.evals:
        return []
    pairs = _pairs(record)
    scores = [_score(record, part, pairs.get(part)) for part in record.parts]
    return [row for row in scores if row] + [row for name in MONITORS if (row := _monitor(record, name))]


def compared(before: EvaluationResult, after: EvaluationResult, trained: Collection[str]) -> list[Outcome]:
    """Return one row per score and monitor of two evaluations of the same images, scores paired.

    Args:
        before: Of the first model.
        after: Of the second.
        trained: Names of the parts in training; the others are held out.

    Raises:
        ValueError: If the two are of other prompts or images.
    """
    rows = [
        Outcome(
            name=name,
            role="trained" if name in trained else "held out",
            before=pair.before,
            after=pair.after,
            difference=pair.difference,
            ci95=pair.ci95,
            win_rate=pair.win_rate,
            spread=pair.spread,
        )
        for name, pair in before.compare(after).items()
    ]
    old, new = before.line(), after.line()
    monitors = [name for name in MONITORS if name in old and name in new]
    return rows + [
        Outcome(name=name, role="monitor", before=old[name], after=new[name], difference=new[name] - old[name]) for name in monitors
    ]


def warnings(rows: list[Outcome]) -> list[str]:
    """Return the signs of reward hacking, in whole sentences; scores count if they moved beyond both chance and `NOTABLE`."""
    found = []
    gains = [row.name for row in rows if row.role == "trained" and row.rose and row.notable]
    losses = [row.name for row in rows if row.role == "held out" and row.fell and row.notable]
    if gains and losses:
        found.append(f"The trained reward rose ({', '.join(gains)}) while a held-out score fell ({', '.join(losses)}).")
    for row in rows:
        if row.role != "monitor" or row.after is None or not row.before > 0:
            continue
        change = row.after / row.before - 1
        if row.name == "diversity" and row.after < COLLAPSED * row.before:
            found.append(
                f"Diversity within a prompt collapsed: it fell by {-change:.0%}, so different noise gives nearly the same picture."
            )
        elif row.name != "diversity" and abs(change) > DRIFTED:
            found.append(f"The pictures changed in kind: {row.name.replace('_', ' ')} moved by {change:+.0%}. Look at the grids.")
    return found


def _pairs(record: RunRecord) -> dict[str, PairedDifference]:
    first, last = record.evals[0]["update"], record.evals[-1]["update"]
    if first == last:
        return {}
    try:
        before, after = (EvaluationResult.load(evaluation_folder(record.folder, update)) for update in (first, last))
        return before.compare(after)
    except ValueError:  # scores not kept, or of other images: the means in metrics.jsonl remain
        return {}


def _score(record: RunRecord, part: str, pair: PairedDifference | None) -> Outcome | None:
    values, halves = record.eval_series(f"eval/{part}")[1], record.eval_series(f"eval/{part}_ci95")[1]
    if not values:
        return None
    row = Outcome(name=part, role="held out" if record.held_out(part) else "trained", before=values[0])
    if len(record.evals) == 1:
        return row
    row = replace(row, after=values[-1], difference=values[-1] - values[0])
    if pair:
        return replace(row, difference=pair.difference, ci95=pair.ci95, win_rate=pair.win_rate, spread=pair.spread)
    if not halves:
        return row
    spread = math.hypot(*(spread_of(halves[place], record.evals[place]["eval_images"]) for place in (0, -1))) / math.sqrt(2)
    return replace(row, ci95=math.hypot(halves[0], halves[-1]), spread=spread)


def _monitor(record: RunRecord, name: str) -> Outcome | None:
    values = record.eval_series(name)[1]
    if not values:
        return None
    row = Outcome(name=name, role="monitor", before=values[0])
    return row if len(record.evals) == 1 else replace(row, after=values[-1], difference=values[-1] - values[0])
