"""``report.html`` of a rollout: one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flowrl.train.page import png_address, write_page
from robot.evaluation.drawing import episode_charts, interval_figure, seed_strip
from robot.evaluation.summary import summarise
from robot.evaluation.videos import WHY_NOT_EXACT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from robot.evaluation.episodes import EpisodeResult

__all__ = ["write_report"]

_FACTS = ("rows", "workers", "seed")
_MANY_CLIPPED = 0.01  # of the control steps


def write_report(
    folder: Path, content: Mapping[str, Any], results: Sequence[EpisodeResult], rivals: Mapping[str, Sequence[EpisodeResult]]
) -> Path:
    """Write the page.

    Args:
        folder: Of the run.
        content: What ``summary.json`` holds.
        results: Of the run's own arms.
        rivals: Whom the policy is compared with, by name.

    Returns:
        The page's path.
    """
    arms = {"policy": [result for result in results if result.arm == "policy"], **rivals}
    arms = {name: list(found) for name, found in arms.items() if found}
    rows = [(name, summarise(found, found[0].arm)) for name, found in arms.items()]
    config, seeds = content["config"], [result.seed for result in results]
    context = {
        "name": folder.resolve().name,
        "env": content["env"],
        "finished": content["finished"],
        "facts": {"policy": _class_name(config.get("policy")), "seeds": f"{min(seeds)} to {max(seeds)}"}
        | {name: config[name] for name in _FACTS if name in config},
        "warnings": _warnings(content, rows),
        "rows": [(name, row, interval_figure(row.success_rate, row.wilson_95, index % 4)) for index, (name, row) in enumerate(rows)],
        "at_end": any(row.successes_at_end != row.successes for _, row in rows),
        "comparisons": content["comparisons"],
        "strip": seed_strip(arms),
        "arm_names": list(arms),
        "charts": episode_charts(arms),
        "pictures": [(line, png_address(folder / line["strip"])) for line in content["videos"]],
        "cost": {key: content[key] for key in ("wall_time_s", "episodes_per_s", "control_steps_per_s")},
        "latency": [(name, row.latency_s) for name, row in rows if row.latency_s],
        "provenance": {
            "git revision": content["git_revision"],
            **{f"SHA-256 of {path}": sha for path, sha in content["checkpoints"].items()},
        },
        "config": yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
    }
    return write_page(folder / "report.html", Path(__file__).with_name("report.html.j2"), context)


def _warnings(content: Mapping[str, Any], rows: Sequence[tuple[str, Any]]) -> list[str]:
    found = list(content["notes"])
    for name, row in rows:
        if row.crashed:
            found.append(f"{name}: {row.crashed} of {row.episodes} episodes crashed and count as no success; episodes.jsonl tells why.")
        share = row.clipped_steps / max(1.0, row.mean_length * row.episodes)
        if share > _MANY_CLIPPED:
            found.append(f"{name}: {share:.1%} of the actions lay outside the action space and were clipped; check units and normaliser.")
    inexact = [str(line["seed"]) for line in content["videos"] if not line.get("kept", True)]
    if inexact:
        found.append(f"The recordings of seeds {', '.join(inexact)} ended otherwise than the evaluation: {WHY_NOT_EXACT}.")
    return found


def _class_name(node: object) -> str:
    return str(node["target"]).rsplit(".", 1)[-1] if isinstance(node, dict) and "target" in node else "–"
