"""The learning curve as a PNG, and a page about a training run on demonstrations."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from flowrl.errors import CheckpointError
from flowrl.train.charts import SMOOTH_FROM, Line, line_chart, smoothed
from flowrl.train.page import png_address, write_page
from flowrl.train.record import read_record
from flowrl.train.report_charts import Chart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from flowrl.train.record import RunRecord
    from robot.learning.lesson import Curve, Training

__all__ = ["CURVE_FILE", "REPORT_FILE", "write_curve", "write_report"]

CURVE_FILE, REPORT_FILE = "learning_curve.png", "report.html"
_LOSS = "eval/loss"
_BLUE, _VERMILION, _GREEN = range(3)
_COLOURS = ("#00855f", "#cc79a7", "#56b4e9", "#e69f00")  # of what validation measures beside the loss
_PANEL = 4.5  # inches


def write_report(run_dir: Path, job: type[Training]) -> Path:
    """Write ``report.html`` and ``learning_curve.png`` into a run folder, whatever the run got to.

    Args:
        run_dir: What ``flowrl train`` wrote.
        job: Class of the job: what it measures and leaves.

    Returns:
        The page's path.

    Raises:
        ValueError: If the folder or its ``metrics.jsonl`` is missing, or nothing in it can be read.
    """
    record = read_record(Path(run_dir))
    write_curve(record, job.curves)
    return write_page(record.folder / REPORT_FILE, Path(__file__).with_name("report.html.j2"), _context(record, job))


def write_curve(record: RunRecord, curves: Sequence[Curve]) -> Path:
    """Draw training and validation loss, and what else validation measures, against steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL * (1 + len(curves)), 3.6), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(curves), squeeze=False)[0]
    steps, loss = record.train_series("loss")
    if loss:
        first.plot(steps, loss, color="#0072b2", alpha=0.35, linewidth=1)
        first.plot(steps, smoothed(loss)[0], color="#0072b2", label="training")
    _panel(record, first, "Loss", {_LOSS: "validation"}, ("#d55e00",))
    for axes, curve in zip(others, curves, strict=True):
        _panel(record, axes, curve.title, curve.lines, _COLOURS)
    if loss and min(loss) > 0:
        first.set_yscale("log")
    path = record.folder / CURVE_FILE
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]
    return path


def _panel(record: RunRecord, axes: Axes, title: str, lines: Mapping[str, str], colours: Sequence[str]) -> None:
    for (name, label), colour in zip(lines.items(), cycle(colours), strict=False):
        x, y = record.eval_series(name)
        if y:
            axes.plot(x, y, marker="o", markersize=4, color=colour, label=label)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel("optimiser steps")
    axes.grid(visible=True, alpha=0.25)
    if axes.lines:
        axes.legend(frameon=False)


def _context(record: RunRecord, job: type[Training]) -> dict[str, Any]:
    planned = record.config.get("steps", record.updates)
    seconds = record.train_series("seconds")[1]
    return {
        "title": job.title,
        "name": record.folder.resolve().name,
        "done": record.updates,
        "planned": planned,
        "seconds": seconds[-1] if seconds else 0.0,
        "facts": _facts(record.config, job.shown),
        "notes": record.notes,
        "charts": _charts(record, job.curves),
        "pictures": [(note, png_address(path)) for file, note in job.pictures.items() if (path := record.folder / file).is_file()],
        "data": _data(record.folder, job),
        "config": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True) if record.config else "",
    }


def _facts(config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The classes that make up the model (``network``: ``ActionUNet``) and its sizes."""
    shown = {name: config[name] for name in names if name in config}
    return {name: value["target"].rsplit(".", 1)[-1] if isinstance(value, dict) else value for name, value in shown.items()}


def _charts(record: RunRecord, measured: Sequence[Curve]) -> list[Chart]:
    steps, loss = record.train_series("loss")
    window = f" Bold: mean over {smoothed(loss)[1]} lines." if len(loss) >= SMOOTH_FROM else ""
    held_out = record.eval_series(_LOSS)
    curves = [
        Line(name="training", x=steps, y=loss),
        Line(name="validation", x=held_out[0], y=held_out[1], markers=True, colour=_VERMILION),
    ]
    charts = [
        _chart("Loss", f"Logarithmic; validation with the averaged weights on episodes that were held out.{window}", curves, log=True)
    ]
    for curve in measured:
        series = {label: record.eval_series(name) for name, label in curve.lines.items()}
        if any(x for x, _ in series.values()):
            lines = [
                Line(name=label, x=x, y=y, markers=True, colour=_GREEN + place) for place, (label, (x, y)) in enumerate(series.items())
            ]
            charts.append(_chart(curve.title, curve.note, lines))
    rate = record.train_series("lr")
    charts.append(_chart("Learning rate", "As the schedule gave it.", [Line(name="rate", x=rate[0], y=rate[1], smooth=False)]))
    return charts


def _chart(title: str, note: str, lines: list[Line], *, log: bool = False) -> Chart:
    return Chart(title=title, note=note, svg=Markup(line_chart(lines, x_label="optimiser steps", log=log)))


def _data(folder: Path, job: type[Training]) -> dict[str, Any]:
    try:
        return dict(job.kind.read_training(folder)["data"])
    except CheckpointError:
        return {}
