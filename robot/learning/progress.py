"""How far a training run is, and what it leaves when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowrl.train.figures import figure, words

__all__ = ["Progress", "TrainingSummary"]


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """What a finished run leaves.

    Attributes:
        run_dir: The run folder.
        updates: Optimiser steps done.
        checkpoint: The model file, such as ``policy.safetensors``.
        noun: What it holds.
        is_main: Whether this process is the one that reports.
        report: The page about the run.
        measured: The last validation; empty where no episodes were held out.
    """

    run_dir: Path
    updates: int
    checkpoint: Path
    is_main: bool
    report: Path
    noun: str = "policy"
    measured: Mapping[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What the command line prints."""
        told = {words(name.removeprefix("eval/")): f"{figure(value)} on held-out episodes" for name, value in self.measured.items()}
        told |= {"report": str(self.report), self.noun: str(self.checkpoint)}
        return [f"{name:<{max(map(len, told))}} {value}" for name, value in told.items()]


@dataclass
class Progress:
    """What the run has done so far; all that the stateless randomness needs to go on is ``step``.

    Attributes:
        step: Optimiser steps done.
        seconds: Spent in them.
        recent: Losses since the last line of metrics.
        data: Fingerprint of the demonstrations.
    """

    step: int = 0
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)
    data: str = ""

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {**vars(self), "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        vars(self).update(state)
