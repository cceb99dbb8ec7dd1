"""The learning curve as a PNG, and a page about a run of behaviour cloning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from flowrl.errors import CheckpointError
from flowrl.train.charts import SMOOTH_FROM, Line, line_chart, smoothed
from flowrl.train.page import write_page
from flowrl.train.record import read_record
from flowrl.train.report_charts import Chart
from robot.learning.checkpoint import read_training

if TYPE_CHECKING:
    from flowrl.train.record import RunRecord

__all__ = ["CURVE_FILE", "REPORT_FILE", "write_curve", "write_report"]

CURVE_FILE, REPORT_FILE = "learning_curve.png", "report.html"
_LOSS, _ERROR = "eval/loss", "eval/action_error"
_BLUE, _VERMILION, _GREEN = range(3)
_SHOWN = ("process", "encoder", "network", "horizon", "execute", "seed")


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` and ``learning_curve.png`` into a run folder, whatever the run got to.

    Args:
        run_dir: What ``flowrl train`` wrote.

    Returns:
        The page's path.

    Raises:
        ValueError: If the folder or its ``metrics.jsonl`` is missing, or nothing in it can be read.
    """
    record = read_record(Path(run_dir))
    write_curve(record)
    return write_page(record.folder / REPORT_FILE, Path(__file__).with_name("report.html.j2"), _context(record))


def write_curve(record: RunRecord) -> Path:
    """Draw training and validation loss, and the action error, against steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.15, top=0.9, wspace=0.18)
    steps, loss = record.train_series("loss")
    if loss:
        left.plot(steps, loss, color="#0072b2", alpha=0.35, linewidth=1)
        left.plot(steps, smoothed(loss)[0], color="#0072b2", label="training")
    for axes, name, label, colour in ((left, _LOSS, "validation", "#d55e00"), (right, _ERROR, "held-out episodes", "#00855f")):
        x, y = record.eval_series(name)
        if y:
            axes.plot(x, y, marker="o", markersize=4, color=colour, label=label)
    for axes, title in ((left, "Loss"), (right, "Error of sampled actions, normalised units")):
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel("optimiser steps")
        axes.grid(visible=True, alpha=0.25)
        if axes.lines:
            axes.legend(frameon=False)
    if loss and min(loss) > 0:
        left.set_yscale("log")
    path = record.folder / CURVE_FILE
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]
    return path


def _context(record: RunRecord) -> dict[str, Any]:
    planned = record.config.get("steps", record.updates)
    seconds = record.train_series("seconds")[1]
    return {
        "name": record.folder.resolve().name,
        "done": record.updates,
        "planned": planned,
        "seconds": seconds[-1] if seconds else 0.0,
        "facts": _facts(record.config),
        "notes": record.notes,
        "charts": _charts(record),
        "data": _data(record.folder),
        "config": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True) if record.config else "",
    }


def _facts(config: dict[str, Any]) -> dict[str, Any]:
    """The classes that make up the policy (``network``: ``ActionUNet``) and its sizes."""
    shown = {name: config[name] for name in _SHOWN if name in config}
    return {name: value["target"].rsplit(".", 1)[-1] if isinstance(value, dict) else value for name, value in shown.items()}


def _charts(record: RunRecord) -> list[Chart]:
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
    error = record.eval_series(_ERROR)
    if error[0]:
        line = Line(name="error", x=error[0], y=error[1], markers=True, colour=_GREEN)
        note = (
            "Root-mean-square distance of sampled from demonstrated actions over the executed steps, normalised units. Several ways to act "
        )
        charts.append(_chart("Action error", f"{note}leave an error however good the policy.", [line]))
    rate = record.train_series("lr")
    charts.append(_chart("Learning rate", "As the schedule gave it.", [Line(name="rate", x=rate[0], y=rate[1], smooth=False)]))
    return charts


def _chart(title: str, note: str, lines: list[Line], *, log: bool = False) -> Chart:
    return Chart(title=title, note=note, svg=Markup(line_chart(lines, x_label="optimiser steps", log=log)))


def _data(folder: Path) -> dict[str, Any]:
    try:
        return dict(read_training(folder)["data"])
    except CheckpointError:
        return {}
