"""Ways of doing the same thing, timed side by side: they take turns in one process, and ratios are taken within a turn."""

from __future__ import annotations

import os
import platform
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["compare", "machine", "markdown_rows", "spread"]


def compare(
    ways: Mapping[str, Callable[[], object]], turns: int, base: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, Any]]:
    """Milliseconds of every way, and ratios to one of them within each turn; by ``time.process_time`` they are those of the CPU."""
    taken = _take_turns(ways, turns, clock)
    return {
        name: {"ms": spread(values), f"ratio to {base}": spread([a / b for a, b in zip(values, taken[base], strict=True)])}
        for name, values in taken.items()
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> str:
    """What it was measured on."""
    return f"{os.cpu_count()} CPU cores, 1 thread, torch {torch.__version__}, Python {platform.python_version()}"


def markdown_rows(found: list[dict[str, Any]] | dict[str, Any]) -> list[str]:
    """A table of rows; nested values become columns, spreads ``median [least, most]``."""
    rows = [_flat(row) for row in ([found] if isinstance(found, dict) else found)]
    head = list(dict.fromkeys(name for row in rows for name in row))
    cells = [" | ".join(row.get(name, "1") for name in head) for row in rows]  # missing: the ratio of a way to itself
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {line} |" for line in cells)]


def _take_turns(ways: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of every way in every turn; the order rotates, the first turn is thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(turns + 1):
        place = turn % len(names)
        for name in names[place:] + names[:place]:
            start = clock()
            ways[name]()
            taken[name].append(1000 * (clock() - start))
    return {name: values[1:] for name, values in taken.items()}


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    cells: dict[str, str] = {}
    for name, value in row.items():
        title = f"{prefix}{name}"
        if isinstance(value, dict) and "median" in value:
            if not (value["min"] == value["max"] == 1):  # the ratio of a way to itself
                cells[title] = f"{value['median']:.3g} [{value['min']:.3g}, {value['max']:.3g}]"
        elif isinstance(value, dict):
            cells |= _flat(value, f"{name}: ")
        else:
            cells[title] = f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)  # noqa: PLR2004
    return cells
