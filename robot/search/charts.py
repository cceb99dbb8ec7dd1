"""Success against weight: the curve of the report and its PNG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flowrl.train.charts import Line, bar_chart, line_chart
from robot.search.simplex import weight_label

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from robot.search.outcomes import Outcome
    from robot.search.results import Candidate, CompositionResult

__all__ = ["PLOT_FILE", "success_chart", "write_plot"]

PLOT_FILE = "success_against_weight.png"
BLUE, VERMILION, GREEN, GREY = "#0072b2", "#d55e00", "#00855f", "#59646f"
PAIR, TRIPLE = 2, 3
MOST_BARS = 10
_BARS: dict[str, Any] = {"ms": 4.5, "capsize": 2.5, "lw": 1.4, "elinewidth": 1}


def success_chart(result: CompositionResult) -> str:
    """An ``<svg>``: for two members success against the first one's weight, for more the best candidates side by side.

    Args:
        result: What was found; without a selection only the report seeds are drawn.
    """
    if len(result.members) == PAIR:
        lines = [] if result.selection is None else [_line("selection seeds", result.selection.candidates, colour=0)]
        lines.append(_line("report seeds", on_the_simplex(result), colour=1))
        return line_chart(lines, x_label=f"weight of {result.members[0]}, %")
    best = sorted(result.selection.candidates if result.selection else (), key=lambda c: c.rate, reverse=True)[:MOST_BARS]
    labels = [" ".join(f"{100 * weight:.0f}" for weight in candidate.weights) for candidate in best]
    names = ", ".join(result.members)
    return bar_chart({"success on selection seeds, %": [100 * c.rate for c in best]}, labels, x_label=f"weights of {names}, %")


def write_plot(result: CompositionResult) -> Path | None:
    """Write the PNG; None for more than three members, which no plane can show."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    if len(result.members) == PAIR:
        _draw_pair(axes, result)
    elif len(result.members) == TRIPLE and result.selection is not None:
        _draw_triangle(figure, axes, result)
    else:
        return None
    path = result.run_dir / PLOT_FILE
    figure.savefig(path, dpi=150)
    return path


def on_the_simplex(result: CompositionResult) -> list[Outcome]:
    """Outcomes on the report seeds that a weight describes: the composition, its parents, equal weights."""
    rows = [row for row in result.outcomes if row.arm.role in ("composed", "parent", "uniform")]
    return sorted(rows, key=lambda row: row.arm.weights)


def _line(name: str, rows: Sequence[Candidate] | Sequence[Outcome], colour: int) -> Line:
    weights = [row.arm.weights if hasattr(row, "arm") else row.weights for row in rows]
    return Line(
        name=name,
        x=[100 * weight[0] for weight in weights],
        y=[100 * row.rate for row in rows],
        band=[(100 * row.interval[0], 100 * row.interval[1]) for row in rows],
        markers=True,
        colour=colour,
    )


def _draw_pair(axes: Any, result: CompositionResult) -> None:
    if result.selection is not None:
        x, y, bars = _columns(_line("", result.selection.candidates, colour=0))
        axes.errorbar(
            x, y, bars, color=BLUE, marker="o", ms=4, capsize=2, lw=1.4, elinewidth=1, label=f"selection, {result.selection.race}"
        )
    x, y, bars = _columns(_line("", on_the_simplex(result), colour=1))
    axes.errorbar(x, y, bars, color=VERMILION, marker="s", ms=5, capsize=3, lw=1.4, ls="--", label=f"report, {result.report_seeds} seeds")
    for row, style in zip((row for row in result.outcomes if row.arm.role in ("average", "sde")), (":", "-.", (0, (5, 3))), strict=False):
        axes.axhline(100 * row.rate, color=GREEN if row.arm.role == "average" else GREY, lw=1, ls=style, label=row.title)
    axes.axvline(100 * result.weights[0], color=GREY, lw=0.6)
    axes.set(xlabel=f"weight of {result.members[0]}, % (rest: {result.members[1]})", ylabel="success, %", ylim=(-3, 103))
    axes.set_title(f"{result.env}: composed {weight_label(result.weights)}, 95 % Wilson intervals", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _columns(line: Line) -> tuple[Sequence[float], Sequence[float], list[list[float]]]:
    below = [y - low for y, (low, _) in zip(line.y, line.band, strict=True)]
    above = [high - y for y, (_, high) in zip(line.y, line.band, strict=True)]
    return line.x, line.y, [below, above]


def _draw_triangle(figure: Any, axes: Any, result: CompositionResult) -> None:
    """Three members as the corners of a triangle; colour is success on the selection seeds, size the number of trials."""
    candidates = result.selection.candidates if result.selection else ()
    places = [_place(candidate.weights) for candidate in candidates]
    most = max((candidate.trials for candidate in candidates), default=1)
    dots = axes.scatter(
        [x for x, _ in places],
        [y for _, y in places],
        c=[100 * candidate.rate for candidate in candidates],
        s=[30 + 90 * candidate.trials / most for candidate in candidates],
        cmap="viridis",
    )
    axes.scatter(*_place(result.weights), facecolors="none", edgecolors=VERMILION, s=220, linewidths=2)
    for name, corner, side in zip(result.members, ((1, 0, 0), (0, 1, 0), (0, 0, 1)), ("top", "top", "bottom"), strict=True):
        x, y = _place(corner)
        axes.annotate(name, (x, y + (0.06 if side == "bottom" else -0.06)), ha="center", va=side, fontsize=9)
    figure.colorbar(dots, ax=axes, label="success on selection seeds, %")
    axes.set_title(f"{result.env}: circled {weight_label(result.weights)}; larger dots were tried more often", fontsize=10, loc="left")
    axes.set(xlim=(-0.2, 1.2), ylim=(-0.15, 1.05), aspect="equal")
    axes.axis("off")


def _place(weights: Sequence[float]) -> tuple[float, float]:
    """On the plane: the corners are (0, 0), (1, 0) and the tip."""
    return weights[1] + weights[2] / 2, weights[2] * math.sqrt(3) / 2
