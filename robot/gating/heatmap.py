"""The time of every latent over the denoising steps, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["HEATMAP_FILE", "write_heatmap"]

HEATMAP_FILE = "schedule.png"
_CELL = 0.62  # inches
_DARK = 0.55  # above it, times are written in black


def write_heatmap(path: Path, schedules: Mapping[str, Sequence[Sequence[float]]], *, latents: Sequence[str] = ()) -> Path:
    """Draw schedules side by side: a row for each predicted latent, the nearest in time at the top, a column for each step.

    Args:
        path: Of the PNG.
        schedules: By title, times ``(step + 1, latent)``, 1 for noise and 0 for data; all of one shape.
        latents: Names of the rows; numbers from 1 where empty.

    Returns:
        ``path``.

    Raises:
        ValueError: If there is none, or their shapes differ.
    """
    from matplotlib.figure import Figure

    tables = {title: np.asarray(times, dtype=float).T for title, times in schedules.items()}
    shapes = {table.shape for table in tables.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:  # noqa: PLR2004
        raise ValueError(f"schedules must be times (step + 1, latent) of one shape, got {[table.T.shape for table in tables.values()]}")
    rows, columns = next(iter(shapes))
    width = len(tables) * (columns * _CELL + 0.5) + 1.6
    figure = Figure(figsize=(width, max(1.9, rows * _CELL * 0.8 + 1.1)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(tables), sharey=True))
    for place, (title, table) in zip(axes, tables.items(), strict=True):
        image = _draw(place, title, table)
    axes[0].set_yticks(range(rows), list(latents) or [str(row + 1) for row in range(rows)])
    axes[0].set_ylabel("predicted latent")
    figure.colorbar(image, ax=list(axes), label="time: 1 noise, 0 data", shrink=0.9)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=130, format="png")
    part.replace(path)
    return path


def _draw(axes: Any, title: str, table: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    image = axes.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), time in np.ndenumerate(table):
        axes.text(column, row, f"{time:.2f}", ha="center", va="center", fontsize=7.5, color="black" if time > _DARK else "white")
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xticks(range(table.shape[1]))
    axes.set_xlabel("denoising steps done")
    return image
