"""Which curves a report shows, and what it says about each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

from flowrl.train.charts import SMOOTH_FROM, Line, bar_chart, line_chart, smoothed
from flowrl.train.figures import words

if TYPE_CHECKING:
    from flowrl.train.record import RunRecord

__all__ = ["Chart", "curves", "monitor_charts", "optimisation_charts", "spread_charts"]

BLUE, VERMILION, GREEN, PURPLE = range(4)
SPREAD, DROPPED = "reward_spread/step_", "groups_dropped"
UPDATES, EVALUATIONS = "updates", "network evaluations"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A titled figure.

    Attributes:
        title: What it shows.
        note: How to read it.
        svg: The figure itself.
    """

    title: str
    note: str
    svg: Markup


def curves(record: RunRecord) -> list[Chart]:
    """Reward in training; every evaluated score against updates, those held out also against network evaluations."""
    charts = []
    reward = record.train_series("reward")
    if reward[0]:
        parts = {part: record.train_series(f"reward/{part}") for part in record.trained} if len(record.trained) > 1 else {}
        lines = [Line(name="reward", x=reward[0], y=reward[1])]
        lines += [Line(name=words(part), x=x, y=y, colour=1 + place % 3) for place, (part, (x, y)) in enumerate(parts.items())]
        window = smoothed(reward[1])[1]
        note = "Mean over the pictures of each rollout, drawn with the sampler's noise."
        note += f" Bold: mean over {window} updates." if len(reward[1]) >= SMOOTH_FROM else ""
        charts.append(_chart("Reward in training", note, line_chart(lines, x_label=UPDATES)))
    for part in record.parts:
        charts.append(_score_chart(record, part))
        if record.held_out(part):
            charts.append(_cost_chart(record, part))
    return charts


def monitor_charts(record: RunRecord) -> list[Chart]:
    """Diversity, edge density and colour entropy of the evaluated pictures."""
    described = {
        "diversity": ("Diversity within a prompt", "Mean root-mean-square distance between pictures of one prompt, pixels in [0, 1]."),
        "edge_density": ("Edge density", "Mean brightness gradient, per pixel."),
        "colour_entropy": ("Colour entropy", "Of the 4 × 4 × 4 colour histogram, in nats; 0 is one flat colour."),
    }
    series = {name: record.eval_series(name) for name in described}
    return [
        _chart(*described[name], line_chart([Line(name=words(name), x=x, y=y, markers=True, colour=GREEN)], x_label=UPDATES))
        for name, (x, y) in series.items()
        if x
    ]


def optimisation_charts(record: RunRecord) -> list[Chart]:
    """Distance of the ratio from 1, clipping, KL, gradient norm, loss, learning rate, lost groups; those that were logged."""
    charts = []
    x, mean = record.train_series("ratio_mean")
    drift = Line(name="mean", x=x, y=[abs(value - 1) for value in mean], colour=GREEN)
    largest = record.train_series("ratio_max_dev")
    if x or largest[0]:
        lines = [Line(name="largest", x=largest[0], y=largest[1]), drift]
        note = "Distance of the policy ratio from 1, logarithmic; exact ones are left out."
        charts.append(_chart("Ratio deviation", note, line_chart(lines, x_label=UPDATES, log=True)))
    described = {
        "clip_fraction": ("Clip fraction", "Share of transitions whose ratio left the clip range."),
        "kl": ("KL to the reference", "Nats per dimension and step."),
        "grad_norm": ("Gradient norm", "Before it is scaled down."),
        "loss": ("Loss", "While ratios are near 1 its value says little; its gradient is what counts."),
        "lr": ("Learning rate", "As the schedule gave it."),
        DROPPED: ("Groups without scores", "Per update; a reward failed for them, and nothing was learned from them."),
    }
    for name, (title, note) in described.items():
        x, y = record.train_series(name)
        if x and (name != DROPPED or any(y)):
            line = Line(name=words(name), x=x, y=y, smooth=name not in ("lr", DROPPED), colour=PURPLE)
            charts.append(_chart(title, note, line_chart([line], x_label=UPDATES)))
    return charts


def spread_charts(record: RunRecord) -> list[Chart]:
    """Spread of the reward within groups: over the run, and by stochastic step; those that were logged."""
    charts = []
    x, y = record.train_series("reward_std")
    if x:
        line = Line(name="reward std", x=x, y=y)
        note = "Standard deviation, mean over groups and steps: what the advantages are made of."
        charts.append(_chart("Reward spread over the run", note, line_chart([line], x_label=UPDATES)))
    names = {key for line in record.train for key in line if key.startswith(SPREAD)}
    steps = sorted(int(name.removeprefix(SPREAD)) for name in names)
    series = [record.train_series(f"{SPREAD}{step}")[1] for step in steps]
    if len(steps) > 1 and any(series):
        quarter = max(1, max(map(len, series)) // 4)
        groups = {
            f"first {quarter} updates": [_mean(values[:quarter]) for values in series],
            f"last {quarter} updates": [_mean(values[-quarter:]) for values in series],
        }
        note = "By the stochastic step that made the difference. A step without spread teaches nothing."
        svg = bar_chart(groups, [str(step) for step in steps], x_label="stochastic step")
        charts.append(_chart("Reward spread by step", note, svg))
    return charts


def _score_chart(record: RunRecord, part: str) -> Chart:
    held_out = record.held_out(part)
    role = "Held out: takes no part in training." if held_out else "The trained reward on fixed prompts and noise."
    line = _score_line(record, part, VERMILION if held_out else BLUE)
    return _chart(words(part).capitalize(), f"{role} Band: 95 % interval of the mean.", line_chart([line], x_label=UPDATES))


def _cost_chart(record: RunRecord, part: str) -> Chart:
    line = _score_line(record, part, VERMILION)
    line = replace(line, x=[record.cost_at(int(update)) for update in line.x])
    note = "The same against what the rollouts have cost by then."
    return _chart(f"{words(part).capitalize()} by cost", note, line_chart([line], x_label=EVALUATIONS))


def _score_line(record: RunRecord, part: str, colour: int) -> Line:
    x, y = record.eval_series(f"eval/{part}")
    band = record.eval_series(f"eval/{part}_ci95")
    return Line(name=words(part), x=x, y=y, ci95=band[1] if band[0] == x else (), markers=True, colour=colour)


def _chart(title: str, note: str, svg: str) -> Chart:
    return Chart(title=title, note=note, svg=Markup(svg))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
