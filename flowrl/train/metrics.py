"""What a run writes down: one JSON object a line, and the user's trackers."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from flowrl.train.whole import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["METRICS_FILE", "MetricsLog", "read_metrics"]

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a metrics file, in order; a last line cut off by a crash is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


class MetricsLog:
    """Appends to ``metrics.jsonl``; each line is on disk before the next update begins."""

    def __init__(self, run_dir: Path, *, keep_before: int, keep_evaluation: bool) -> None:
        """Open the file, and drop what a resumed run will write again.

        Args:
            run_dir: The run folder.
            keep_before: Train lines of this update and later ones are dropped, and evaluations of later ones.
            keep_evaluation: Keep the evaluation made at exactly ``keep_before`` updates.
        """
        self.path = run_dir / METRICS_FILE
        if self.path.exists():
            kept = [line for line in read_metrics(self.path) if _is_past(line, keep_before, keep_evaluation)]
            write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def has_evaluation(self, update: int) -> bool:
        """Whether the evaluation after this many updates is written."""
        return self.path.exists() and any(line["kind"] == "eval" and line["update"] == update for line in read_metrics(self.path))


def _is_past(line: Mapping[str, Any], update: int, keep_evaluation: bool) -> bool:  # noqa: FBT001 - private, named at its call
    if line["kind"] == "eval":
        return bool(line["update"] < update or (keep_evaluation and line["update"] == update))
    return bool(line["update"] < update)
