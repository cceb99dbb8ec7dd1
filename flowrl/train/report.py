"""``report.html``: one self-contained page that tells how a run went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flowrl.train.evaluation_result import EvaluationResult, evaluation_folder
from flowrl.train.figures import words
from flowrl.train.grids import save_png
from flowrl.train.outcomes import outcomes, warnings
from flowrl.train.page import png_address, write_page
from flowrl.train.record import RunRecord, read_record
from flowrl.train.report_charts import Chart, curves, monitor_charts, optimisation_charts, spread_charts

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["write_before_after", "write_report"]

REPORT_FILE = "report.html"
BEFORE_AFTER_FILE = "grids/before_after.png"
COMPONENTS = ("model", "sampler", "reward", "advantage", "objective", "optimizer")
COSTS = ("network_evaluations", "trained_states", "images", "seconds")
SIZES = ("prompts_per_update", "seed")
PHASES = ("rollout", "reward", "update")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A share of the wall time.

    Attributes:
        name: What was done.
        seconds: Summed over the run.
        share: Of the whole, in [0, 1].
    """

    name: str
    seconds: float
    share: float


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run folder, whatever the run got to.

    The page holds its styles, curves and pictures itself and refers to nothing outside. Where the run kept its first and its last
    evaluation, the grid of both is written too.

    Args:
        run_dir: What ``flowrl train`` wrote.

    Returns:
        The page's path.

    Raises:
        ValueError: If the folder or its ``metrics.jsonl`` is missing, or nothing in it can be read.
    """
    record = read_record(Path(run_dir))
    return write_page(record.folder / REPORT_FILE, Path(__file__).with_name("report.html.j2"), _context(record))


def write_before_after(record: RunRecord) -> Path | None:
    """Write the grid that shows the first and the last evaluation side by side.

    Returns:
        Its path; None if the run did not keep two evaluations of the same images.
    """
    if len(record.evals) <= 1:
        return None
    first, last = record.evals[0]["update"], record.evals[-1]["update"]
    try:
        before, after = (EvaluationResult.load(evaluation_folder(record.folder, update)) for update in (first, last))
        grid = after.grid_against(before, f"Before and after {last} updates: same prompts, same noise")
    except ValueError:
        return None
    return save_png(grid, record.folder / BEFORE_AFTER_FILE)


def _context(record: RunRecord) -> dict[str, Any]:
    rows = outcomes(record)
    planned = record.config.get("updates")
    charts: dict[str, Sequence[Chart]] = {
        "Learning": curves(record),
        "What the reward does not see": monitor_charts(record),
        "Where rewards differ within a group": spread_charts(record),
        "Optimisation": optimisation_charts(record),
    }
    return {
        "name": record.folder.resolve().name,
        "done": record.updates,
        "planned": planned if isinstance(planned, int) else record.updates,
        "facts": _facts(record.config),
        "rows": rows,
        "paired": any(row.win_rate is not None for row in rows),
        "warnings": warnings(rows),
        "notes": record.notes,
        "pictures": _pictures(record),
        "sections": {title: found for title, found in charts.items() if found},
        "cost": {name: record.cost_at(record.updates, name) for name in COSTS},
        "updates": max(1, len(record.train)),
        "phases": _phases(record),
        "config": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True) if record.config else "",
    }


def _facts(config: dict[str, Any]) -> dict[str, str]:
    """The classes that make up the run (``sampler``: ``SingularStochasticSampler``) and its sizes."""
    nodes = {key: config[key] for key in COMPONENTS if isinstance(config.get(key), dict)}
    facts = {key: str(node["target"]).rsplit(".", 1)[-1] for key, node in nodes.items() if "target" in node}
    sizes = {"group size": nodes.get("sampler", {}).get("group_size")} | {words(key): config.get(key) for key in SIZES}
    return facts | {key: str(size) for key, size in sizes.items() if size is not None}


def _pictures(record: RunRecord) -> list[tuple[str, str]]:
    """Captions and data addresses: the grid of both evaluations, else the first grid and the last."""
    both = write_before_after(record)
    if both:
        return [("Before and after, drawn from the same noise. A reward that rose is blue, one that fell is orange.", png_address(both))]
    kept = [(line["update"], record.folder / line["grid"]) for line in record.evals if isinstance(line.get("grid"), str)]
    kept = [(update, path) for update, path in kept if path.is_file()]
    chosen = [kept[0], kept[-1]] if len(kept) > 1 else kept
    return [(f"After {update} updates." if update else "Before training.", png_address(path)) for update, path in chosen]


def _phases(record: RunRecord) -> list[Phase]:
    """Wall time by phase; what no phase counted is called other."""
    total = record.cost_at(record.updates, "seconds")
    sums = {name: sum(record.train_series(f"seconds_{name}")[1]) for name in PHASES}
    whole = max(total, sum(sums.values()))
    if not whole > 0:
        return []
    sums["other"] = whole - sum(sums.values())
    return [Phase(name=name, seconds=seconds, share=seconds / whole) for name, seconds in sums.items() if seconds > 0]
