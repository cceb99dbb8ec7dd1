"""Which extras a config uses, and whether they are installed."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowrl.train.trainer import RLTrainer

__all__ = ["show_used_extras", "used_extras"]

MODULES = {
    "bitsandbytes": ("bitsandbytes",),
    "flash": ("flash_attn",),
    "ocr": ("rapidocr", "onnxruntime"),
    "open-clip": ("open_clip",),
    "wandb": ("wandb",),
    "xformers": ("xformers",),
}


def used_extras(trainer: RLTrainer) -> list[str]:
    """Names of the extras that a run needs on its machines; those of rewards on a server are the server's."""
    from flowrl.rl import with_those_within

    source: Any = trainer.model
    evaluated = trainer.evaluation.rewards if trainer.evaluation else ()
    parts = [part for reward in (trainer.reward, *evaluated) for part in with_those_within(reward)]
    attention = getattr(source, "attention", None) or ""
    used = {
        "bitsandbytes": type(trainer.optimizer).__name__ == "AdamW8bit" or getattr(source, "quantise", None) == "nf4",
        "flash": attention == "flash",
        "ocr": any(type(part).__name__ == "OCRAccuracy" for part in parts),
        "open-clip": any(getattr(part, "backend", None) == "open_clip" for part in parts),
        "wandb": "wandb" in trainer.trackers,
        "xformers": attention == "xformers",
    }
    return [extra for extra, needed in used.items() if needed]


def show_used_extras(trainer: RLTrainer) -> None:
    """Print a row for each; an absent one comes with the command that installs it."""
    from flowrl.cli.console import row, say

    for extra in used_extras(trainer):
        there = all(importlib.util.find_spec(module) is not None for module in MODULES[extra])
        say(row(f"extra {extra}", "installed" if there else f"absent, and this run needs it; pip install 'flowrl-torch[{extra}]'"))
