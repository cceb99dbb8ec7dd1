"""Pictures of ``benchmarks/noisegate.py``: what counts of every arm, and the schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from noisegate_found import MEASURES
from noisegate_tasks import hand_made
from PIL import Image

from robot.gating.heatmap import write_heatmap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from noisegate_found import Found

__all__ = ["draw"]

SHOWN = ("constants", "gate")
BLUE, VERMILION, GREY = "#0072b2", "#d55e00", "#999999"


def draw(found: Sequence[Found], path: Path, picture: Path) -> None:
    """Write both pictures.

    Args:
        found: The tasks.
        path: Of the picture for the results.
        picture: Of the schedules alone; beside it, as ``schedules.png``, those made by hand.
    """
    picture.parent.mkdir(parents=True, exist_ok=True)
    schedules(found, picture)
    gallery(picture.with_name("schedules.png"))
    heatmap = imread(picture)
    arms = max(len(one.hand_made) + len(one.learned) for one in found)
    high, wide = 0.27 * arms + 1.2, max(11.0, 5.5 * len(found))
    below = wide * heatmap.shape[0] / heatmap.shape[1]
    figure = Figure(figsize=(wide, high + below), layout="constrained")
    grid = figure.add_gridspec(2, len(found), height_ratios=[high, below])
    for column, one in enumerate(found):
        _successes(figure.add_subplot(grid[0, column]), one)
    axes = figure.add_subplot(grid[1, :])
    axes.imshow(heatmap)
    axes.set_axis_off()
    figure.savefig(path, dpi=130)


def gallery(path: Path) -> None:
    """Schedules made by hand, of five steps and four frames."""
    steps, frames = 5, 4
    tables = {name: table.times()[:, 0].tolist() for name, table in hand_made(steps, frames).items() if not name.startswith("constant")}
    names, rows = list(tables), []
    for three in (names[:3], names[3:]):
        with Image.open(write_heatmap(path, {name: tables[name] for name in three}, latents=["+4", "+8", "+12", "+16"])) as image:
            rows.append(image.convert("RGB"))
    _stacked(rows).save(path)


def schedules(found: Sequence[Found], path: Path) -> None:
    """The shared schedule, the best hand-made, and what was learned (mean over chunks and training seeds), a row per task."""
    parts = []
    for one in found:
        tables = {"shared": one.report["shared"].line["times"]}
        if one.best != "shared":
            tables[f"best hand-made: {one.best}"] = one.report[one.best].line["times"]
        for way in SHOWN:
            if way in one.learned:
                tables[way] = np.mean([one.report[arm].line["times"] for arm in one.learned[way]], axis=0).tolist()
        titles = {(f"{one.settings['title']}: {name}" if not place else name): times for place, (name, times) in enumerate(tables.items())}
        latents = [f"+{one.settings['stride'] * (frame + 1)}" for frame in range(len(tables["shared"][0]))]
        part = path.with_name(f"{path.stem}_{one.name}.part.png")
        with Image.open(write_heatmap(part, titles, latents=latents)) as image:
            parts.append(image.convert("RGB"))
        part.unlink()
    _stacked(parts).save(path)


def _stacked(parts: list[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def _successes(axes: Any, found: Found) -> None:
    """A line per arm: single arms with Wilson intervals, learned ones pooled, with a dot for each training seed."""
    names = [*found.hand_made, *found.learned]
    for row, name in enumerate(names):
        learned = name in found.learned
        middle, low, high = found.interval(name, found.primary)
        errors = np.clip([[middle - low], [high - middle]], 0, None)
        colour = VERMILION if learned else BLUE
        axes.errorbar([middle], [row], xerr=errors, fmt="o", color=colour, markersize=5, capsize=3)
        if learned:
            each = [found.pooled([arm], found.primary).mean() for arm in found.learned[name]]
            axes.plot(each, [row + 0.25] * len(each), "|", color=colour, markersize=7)
    axes.axvline(found.interval(found.best, found.primary)[0], color=GREY, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), [f"{name} (chosen)" if name == found.best else name for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(f"{MEASURES[found.primary]}, 95 % interval")
    axes.set_title(f"{found.settings['title']}, {len(found.seeds)} report seeds", fontsize=10, loc="left")
