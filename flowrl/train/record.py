"""What a run folder tells: its configuration, its metrics, and what in it could not be read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flowrl.train.metrics import METRICS_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RunRecord", "in_training", "read_record"]

EVAL, CI95, TRAINED, HELD_OUT = "eval/", "_ci95", "reward/", "heldout"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run, as far as it got.

    Attributes:
        folder: The run folder.
        config: The resolved configuration; empty if the run kept none.
        train: The ``train`` lines of ``metrics.jsonl``, by ascending update; ``update`` counts from 0.
        evals: The ``eval`` lines; ``update`` is the number of updates done before.
        notes: What was missing or unreadable, in whole sentences.
    """

    folder: Path
    config: dict[str, Any]
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    notes: list[str]

    @property
    def updates(self) -> int:
        """Number of updates that were logged or evaluated."""
        return max([line["update"] + 1 for line in self.train] + [line["update"] for line in self.evals], default=0)

    @property
    def parts(self) -> list[str]:
        """The scores that evaluations measured: those in training first, each in the order of the file."""
        names = [key.removeprefix(EVAL) for line in self.evals for key in line if key.startswith(EVAL) and not key.endswith(CI95)]
        return sorted(dict.fromkeys(names), key=self.held_out)

    @property
    def trained(self) -> list[str]:
        """The reward parts that training logged and that count there."""
        logged = dict.fromkeys(key.removeprefix(TRAINED) for line in self.train for key in line if key.startswith(TRAINED))
        reward = self.config.get("reward")
        weights = reward.get("weights") if isinstance(reward, dict) else None
        return in_training(dict.fromkeys(logged, 1.0) | {part: x for part, x in (weights or {}).items() if part in logged})

    def held_out(self, part: str) -> bool:
        """Whether a score takes no part in training."""
        return part not in self.trained if self.trained else part.startswith(HELD_OUT)

    def train_series(self, name: str) -> tuple[list[float], list[float]]:
        """Updates and values of one field of the ``train`` lines, where it is a finite number."""
        return _series(self.train, name)

    def eval_series(self, name: str) -> tuple[list[float], list[float]]:
        """Updates and values of one field of the ``eval`` lines, where it is a finite number."""
        return _series(self.evals, name)

    def cost_at(self, update: int, name: str = "network_evaluations") -> float:
        """A cumulative field (``network_evaluations``, ``images``, ``seconds``) after so many updates; 0 before the first."""
        done = [line[name] for line in self.train if line["update"] < update and name in line]
        return float(done[-1]) if done else 0.0


def in_training(weights: Mapping[str, float]) -> list[str]:
    """The parts of a reward that are trained on: those with a weight, and those reported beside their own scale or rank.

    >>> in_training({"hps": 1.0, "clip": 0.0, "clip_normalised": 0.5, "aesthetic": 0.0})
    ['hps', 'clip', 'clip_normalised']
    """
    counted = [part for part, weight in weights.items() if weight]
    return [part for part in weights if part in counted or any(other.startswith(f"{part}_") for other in counted)]


def read_record(folder: Path) -> RunRecord:
    """Read a run folder, finished or not.

    A last line that was cut off is left out, as is any line that is not a JSON object; both are noted. Of lines that repeat an update, as a
    resumed run may leave them, the last counts.

    Args:
        folder: What ``flowrl train`` wrote.

    Raises:
        ValueError: If the folder or its ``metrics.jsonl`` is missing, or no line of it is complete.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}; give the folder that flowrl train printed")
    path = folder / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {METRICS_FILE}; give the folder that flowrl train printed, which holds one")
    notes: list[str] = []
    lines = _lines(path, notes)
    if not lines:
        raise ValueError(f"{path} holds no complete line yet; let the run finish its first update or evaluation")
    config, evals = _config(folder / "config.yaml", notes), _of_kind(lines, "eval")
    if evals and (first := evals[0]["update"]):
        notes.append(f"The weights from before training have no evaluation here; what is called before is the state after update {first}.")
    return RunRecord(folder=folder, config=config, train=_of_kind(lines, "train"), evals=evals, notes=notes)


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines, bad = [], []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("update"), int):
            lines.append(line)
        elif text.strip():
            bad.append(number)
    if bad and bad[-1] == len(texts):
        notes.append(f"The last line of {path.name} (line {bad.pop()}) is cut off and was left out.")
    if bad:
        notes.append(f"{len(bad)} lines of {path.name} could not be read and were left out (the first is line {bad[0]}).")
    return lines


def _config(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    if isinstance(config, dict):
        return config
    notes.append(f"{path.name} is missing or unreadable, so the configuration is not shown.")
    return {}


def _of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    by_update = {line["update"]: line for line in lines if line.get("kind") == kind}
    return [by_update[update] for update in sorted(by_update)]


def _series(lines: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points = [(float(line["update"]), float(line[name])) for line in lines if _is_number(line.get(name))]
    return [x for x, _ in points], [y for _, y in points]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
