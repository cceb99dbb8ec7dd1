"""A page about the training of a gate: what it gained, which schedule it found, and whether the rollouts told anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from flowrl.train.charts import SMOOTH_FROM, Line, line_chart, smoothed
from flowrl.train.figures import words
from flowrl.train.page import png_address, write_page
from flowrl.train.record import read_record
from flowrl.train.report_charts import Chart
from robot.gating.heatmap import HEATMAP_FILE, write_heatmap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrl.train.record import RunRecord

__all__ = ["REPORT_FILE", "write_report"]

REPORT_FILE = "report.html"
_BLUE, _VERMILION, _GREEN = range(3)
_SHOWN = ("model", "env", "gate", "hold", "antithetic", "groups", "group_size", "seed")
_FEW = 0.5  # informative groups below which the page warns
_UPDATES = "updates"
_LATENT_CHARTS = (
    ("final_time", "Final time of every latent", "Where the drawn schedules end: 1 stays noise, 0 is imagined in full."),
    ("multiplier", "Multiplier of every latent", "Of what was drawn, mean over steps and chunks; 1 is the shared schedule."),
)
_TRAIN_CHARTS = (
    ("Informative groups", "Share of groups whose members fared differently; only these teach.", ("informative",)),
    ("Entropy", "Of a decision's multiplier, nats; ln 2 = 0.69 is uniform on (0, 2).", ("entropy",)),
    (
        "Update",
        "Largest distance of a ratio from 1, and the share of decisions whose gradient the clip stopped.",
        ("ratio_max_dev", "clip_fraction"),
    ),
)


def write_report(run_dir: Path) -> RunRecord:
    """Write ``report.html`` and ``schedule.png`` into a run folder, whatever the run got to.

    Args:
        run_dir: What ``flowrl train`` wrote.

    Returns:
        What the page tells.

    Raises:
        ValueError: If the folder or its ``metrics.jsonl`` is missing, or nothing in it can be read.
    """
    record = read_record(Path(run_dir))
    picture = _heatmap(record)
    write_page(record.folder / REPORT_FILE, Path(__file__).with_name("report.html.j2"), _context(record, picture))
    return record


def _context(record: RunRecord, picture: Path | None) -> dict[str, Any]:
    seconds = record.train_series("seconds")[1]
    config = record.config
    warm_up = (config.get("warm_up") or {}).get("updates", 0)
    return {
        "name": record.folder.resolve().name,
        "done": record.updates,
        "planned": config.get("updates", record.updates - warm_up) + warm_up,
        "warm_up": warm_up,
        "seconds": seconds[-1] if seconds else 0.0,
        "facts": _facts(config),
        "notes": [*record.notes, *_warnings(record)],
        "evaluated": [_row(line) for line in record.evals],
        "last": record.evals[-1] if record.evals else None,
        "picture": None if picture is None else png_address(picture),
        "charts": _charts(record),
        "cost": _cost(record),
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
    }


def _facts(config: dict[str, Any]) -> dict[str, Any]:
    """The parts of the run (``gate``: ``NoiseGateConfig``) and its sizes."""
    shown = {name: config[name] for name in _SHOWN if name in config}
    return {words(name): value["target"].rsplit(".", 1)[-1] if isinstance(value, dict) else value for name, value in shown.items()}


def _row(line: dict[str, Any]) -> dict[str, Any]:
    """One evaluation, as the table shows it."""
    low, high = line["difference_95"]
    verdict = "up" if low > 0 else "down" if high < 0 else ""
    return line | {"verdict": verdict, "times": " ".join(f"{time:.2f}" for time in line["final_time"])}


def _warnings(record: RunRecord) -> list[str]:
    found = []
    played = [line for line in record.train if line.get("phase") == "rollout"]
    informative = [line["informative"] for line in played]
    if informative and (share := sum(informative) / len(informative)) < _FEW:
        found.append(
            f"Only {share:.0%} of the groups had members that fared differently; the others taught nothing. A reward that grades failures "
            "(max_reward), larger groups or harder seeds give more."
        )
    if (crashed := sum(line["crashed"] for line in played)) > 0:
        found.append(f"{crashed / len(played):.1%} of the training episodes crashed; they were left out.")
    return found


def _cost(record: RunRecord) -> dict[str, Any]:
    if not record.train:
        return {}
    last = record.train[-1]
    kept = ("episodes", "control_steps", "network_evaluations", "chunks")
    return {name: last[name] for name in kept} | {
        name: last[key] for name, key in (("video", "evaluations/video_per_chunk"), ("action", "evaluations/action_per_chunk"))
    }


def _heatmap(record: RunRecord) -> Path | None:
    """The first and the last evaluated schedule, or the explored one where nothing was evaluated."""
    shown = {f"after {line['update']} updates": line["times"] for line in [*record.evals[:1], *record.evals[-1:]] if line.get("times")}
    if not shown and record.train:
        shown = {f"explored in update {record.train[-1]['update']}": record.train[-1]["times"]}
    return write_heatmap(record.folder / HEATMAP_FILE, shown) if shown else None


def _charts(record: RunRecord) -> list[Chart]:
    return [
        _success_chart(record),
        _reward_chart(record),
        *(_latent_chart(record, field, title, note) for field, title, note in _LATENT_CHARTS),
        *(
            _chart(title, note, [_train_line(record, name, colour=place) for place, name in enumerate(names)])
            for title, note, names in _TRAIN_CHARTS
        ),
    ]


def _success_chart(record: RunRecord) -> Chart:
    lines = [_train_line(record, "success", name="explored", colour=_GREEN)]
    for name, prefix, colour in (("gate", "", _BLUE), ("shared schedule", "shared/", _VERMILION)):
        x, y = record.eval_series(f"{prefix}success")
        edges = [tuple(line[f"{prefix}success_95"]) for line in record.evals]
        lines.append(Line(name=name, x=x, y=y, band=edges if len(edges) == len(x) else (), markers=True, colour=colour))
    note = "Evaluation with the gate's mean decisions on seeds of its own, with 95 % Wilson intervals; rollouts of training explore."
    return _chart("Success", note, lines)


def _reward_chart(record: RunRecord) -> Chart:
    parts = list(dict.fromkeys(key for line in record.train for key in line if key.startswith("reward/")))
    lines = [_train_line(record, "reward")]
    if len(parts) > 1:
        lines += [_train_line(record, part, name=words(part.removeprefix("reward/")), colour=1 + i % 3) for i, part in enumerate(parts)]
    window = smoothed(lines[0].y)[1]
    note = "Mean over the explored episodes." + (f" Bold: mean over {window} updates." if len(lines[0].x) >= SMOOTH_FROM else "")
    return _chart("Reward in training", note, lines)


def _latent_chart(record: RunRecord, field: str, title: str, note: str) -> Chart:
    lines = []
    for latent in range(len(record.train[0][field]) if record.train else 0):
        x, y = [float(line["update"]) for line in record.train], [line[field][latent] for line in record.train]
        lines.append(Line(name=f"latent {latent + 1}", x=x, y=y, smooth=False, colour=latent % 4))
    return _chart(title, note, lines)


def _train_line(record: RunRecord, field: str, *, name: str = "", colour: int = _BLUE) -> Line:
    x, y = record.train_series(field)
    return Line(name=name or words(field), x=x, y=y, colour=colour)


def _chart(title: str, note: str, lines: Sequence[Line]) -> Chart:
    return Chart(title=title, note=note, svg=Markup(line_chart(lines, x_label=_UPDATES)))
