"""``episodes.jsonl``: one line per finished episode, on disk before the next one ends."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from flowrl.errors import CheckpointError
from robot.evaluation.episodes import EpisodeResult

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EPISODES_FILE", "EpisodeLog"]

EPISODES_FILE = "episodes.jsonl"


class EpisodeLog:
    """The finished episodes of a run; a line that a crash cut off does not count, and is dropped before the next is written."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Args:
            path: Of the file; it need not exist.

        Raises:
            CheckpointError: If a line other than the last cannot be read.
        """
        self.path = path
        self.results: dict[tuple[str, int], EpisodeResult] = {}
        self.seconds = 0.0
        """Wall time until the last episode ended, over all sittings."""
        self._torn_at: int | None = None
        if path.exists():
            self._read()

    def write(self, result: EpisodeResult, seconds: float) -> None:
        """Append a result.

        Args:
            result: Of an episode that has ended.
            seconds: Wall time since the run began.
        """
        self.results[result.key] = result
        self.seconds = seconds
        if self._torn_at is not None:
            os.truncate(self.path, self._torn_at)
            self._torn_at = None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result.to_json() | {"seconds": round(seconds, 3)}, allow_nan=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        self._torn_at = len(whole) if len(whole) < len(content) else None
        for number, text in enumerate(whole.splitlines(), start=1):
            try:
                line = json.loads(text)
                result = EpisodeResult.from_json(line)
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{self.path} line {number} is no episode ({type(error).__name__}: {error}); remove the line, or choose another run_dir"
                ) from error
            self.results[result.key] = result
            self.seconds = float(line.get("seconds", self.seconds))
