"""Figures of a rollout's page as inline SVG: intervals, the outcome of every seed, curves over seeds."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from markupsafe import Markup

from flowrl.train.charts import Line, bar_chart, line_chart
from flowrl.train.report_charts import Chart
from robot.evaluation.statistics import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from robot.evaluation.episodes import EpisodeResult

__all__ = ["episode_charts", "interval_figure", "outcome_of", "seed_strip"]

_WIDTH, _HEIGHT, _EDGE = 130, 22, 6  # pixels of an interval
_COLUMNS, _CELL, _GAP, _LABEL = 50, 17, 3, 64  # of the strip of seeds
_BINS = 8
_FILL = {"success": "var(--c0)", "failure": "var(--rule)", "crashed": "var(--warn)"}


def interval_figure(rate: float, ends: tuple[float, float], colour: int = 0) -> Markup:
    """A point and its interval on a scale from 0 to 1.

    Args:
        rate: The point, in [0, 1].
        ends: Of the interval.
        colour: Number of the page's colour.
    """
    low, middle, high = (_EDGE + value * (_WIDTH - 2 * _EDGE) for value in (ends[0], rate, ends[1]))
    y, ink = _HEIGHT / 2, f"var(--c{colour})"
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{rate:.1%}, interval {ends[0]:.1%} to {ends[1]:.1%}" style="vertical-align:middle">'
        f'<line x1="{_EDGE}" x2="{_WIDTH - _EDGE}" y1="{y}" y2="{y}" style="stroke:var(--rule)"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" style="stroke:{ink};stroke-width:6;stroke-linecap:round;opacity:.35"/>'
        f'<circle cx="{middle:.1f}" cy="{y}" r="4.5" style="fill:{ink}"/></svg>'
    )


def outcome_of(result: EpisodeResult) -> str:
    """``success``, ``failure`` or ``crashed``."""
    return "crashed" if result.crashed else "success" if result.success else "failure"


def seed_strip(arms: Mapping[str, Sequence[EpisodeResult]]) -> Markup:
    """One column per seed, one cell per arm, in the order of the seeds; seeds that no arm but others ran stay empty.

    Args:
        arms: Results by name.
    """
    by_seed = {name: {result.seed: result for result in results} for name, results in arms.items()}
    seeds = sorted({seed for found in by_seed.values() for seed in found})
    lines = [seeds[start : start + _COLUMNS] for start in range(0, len(seeds), _COLUMNS)]
    line_height = len(arms) * _CELL + 20
    width, height = _LABEL + _COLUMNS * _CELL, len(lines) * line_height
    parts = []
    for number, line in enumerate(lines):
        top = number * line_height
        parts.append(f'<text class="tick" x="0" y="{top + 12}">{line[0]}</text>')
        for column, seed in enumerate(line):
            x = _LABEL + column * _CELL
            cells = [_cell(x, top + row * _CELL, found.get(seed)) for row, found in enumerate(by_seed.values())]
            parts.append(f"<g><title>{escape(_tell(seed, by_seed))}</title>{''.join(cells)}</g>")
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="outcome of every seed">{"".join(parts)}</svg>')


def episode_charts(arms: Mapping[str, Sequence[EpisodeResult]]) -> list[Chart]:
    """Success rate as episodes come in, and how long the successes took.

    Args:
        arms: Results by name; the first is the policy's.
    """
    lines = [_running(name, sorted(results, key=lambda result: result.seed), colour) for colour, (name, results) in enumerate(arms.items())]
    note = "Over the seeds in ascending order, with its 95 % Wilson band: whether more seeds would change the picture."
    charts = [Chart(title="Success rate so far", note=note, svg=Markup(line_chart(lines, x_label="seeds")))]
    taken = {name: [result.success_at for result in results if result.success_at is not None] for name, results in arms.items()}
    if any(taken.values()):
        most = max(max(steps, default=0) for steps in taken.values())
        width = -(-most // _BINS)
        groups = {
            name: [sum((step - 1) // width == place for step in steps) for place in range(-(-most // width))]
            for name, steps in taken.items()
        }
        labels = [f"≤ {(place + 1) * width}" for place in range(-(-most // width))]
        svg = Markup(bar_chart(groups, labels, x_label="control steps"))
        charts.append(Chart(title="Control steps to success", note="How many episodes were solved after so many control steps.", svg=svg))
    return charts


def _running(name: str, results: Sequence[EpisodeResult], colour: int) -> Line:
    counts, successes = [], 0
    for place, result in enumerate(results, start=1):
        successes += result.success
        counts.append((successes, place))
    return Line(
        name=name,
        x=[float(trials) for _, trials in counts],
        y=[count / trials for count, trials in counts],
        band=[wilson_interval(count, trials) for count, trials in counts],
        smooth=False,
        colour=colour % 4,
    )


def _cell(x: int, y: int, result: EpisodeResult | None) -> str:
    fill = "none" if result is None else _FILL[outcome_of(result)]
    return f'<rect x="{x}" y="{y}" width="{_CELL - _GAP}" height="{_CELL - _GAP}" rx="2.5" style="fill:{fill};stroke:var(--rule)"/>'


def _tell(seed: int, by_seed: Mapping[str, Mapping[int, EpisodeResult]]) -> str:
    told = []
    for name, found in by_seed.items():
        result = found.get(seed)
        if result is not None:
            how = result.error or ("ended by the task" if result.terminated else "time limit")
            told.append(f"{name}: {outcome_of(result)}, {result.length} control steps, {how}")
    return f"seed {seed}\n" + "\n".join(told)
