"""How far the training of a gate is, and what it leaves when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robot.gating.heatmap import HEATMAP_FILE

__all__ = ["GateSummary", "Progress"]


@dataclass
class Progress:
    """What the run has done so far; all that the stateless randomness needs to go on is ``update``.

    Attributes:
        update: Updates done, those of the warm-up too.
        seconds: Spent in them.
        episodes: Rolled out.
        control_steps: Of these.
        chunks: Drawn, those of the warm-up too.
        network_evaluations: Of either stream of the model, each for one row and a whole stream.
        model: Fingerprint of the world-action model.
    """

    update: int = 0
    seconds: float = 0.0
    episodes: int = 0
    control_steps: int = 0
    chunks: int = 0
    network_evaluations: float = 0.0
    model: str = ""

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint."""
        vars(self).update(state)


@dataclass(frozen=True, kw_only=True)
class GateSummary:
    """What a finished run leaves.

    Attributes:
        run_dir: The run folder.
        updates: Updates done.
        checkpoint: The gate, ``gate.safetensors``.
        report: The page about the run.
        evaluation: The last evaluation's line of metrics; empty where there was none.
        is_main: Whether this process is the one that reports; it is the only one.
    """

    run_dir: Path
    updates: int
    checkpoint: Path
    report: Path
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    is_main: bool = True

    def lines(self) -> list[str]:
        """What the command line prints: before and after on the evaluation's episodes, and where to look further."""
        found = self.evaluation
        places = [f"report          {self.report}", f"gate            {self.checkpoint}"]
        if not found:
            return places
        low, high = found["difference_95"]
        rows = [
            f"{found['episodes']} paired episodes   shared    gate   difference, 95 % interval",
            f"success         {found['shared/success']:10.3f} {found['success']:7.3f}   "
            f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f}), McNemar p = {found['mcnemar_p']:.2g}",
        ]
        if "max_reward" in found:
            middle, half = found["max_reward_difference"], found["max_reward_difference_ci95"]
            rows.append(
                f"highest reward  {found['shared/max_reward']:10.3f} {found['max_reward']:7.3f}   {middle:+.3f} "
                f"({middle - half:+.3f} to {middle + half:+.3f})"
            )
        times = " ".join(f"{time:.2f}" for time in found["final_time"])
        picture = f"schedule        {self.run_dir / HEATMAP_FILE}, times of the latents after the last step: {times} (shared: 0)"
        return [*rows, picture, *places]
