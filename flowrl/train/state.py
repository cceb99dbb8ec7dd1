"""What a checkpoint holds, and how it is written and read back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from flowrl.errors import CheckpointError
from flowrl.train.checkpoint import CheckpointFolder, check_complete
from flowrl.train.parallel import full_state, is_sharded
from flowrl.train.resume import CONFIG_FILE, refuse_other_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from accelerate import Accelerator
    from torch import nn

    from flowrl.train.learner import Learner

__all__ = ["Counters", "keep_weights_out", "load_checkpoint", "save_checkpoint"]

# What may change between a run and its resumption without making it another run; more updates stretch the rest of a schedule.
_FREE = (
    "run_dir",
    "updates",
    "evaluate_every",
    "evaluation",
    "checkpoint_every",
    "keep_checkpoints",
    "reward_batch",
    "on_reward_failure",
    "trackers",
)


@dataclass
class Counters:
    """What the run has done so far; all that the stateless randomness needs to go on is ``update``."""

    update: int = 0
    network_evaluations: int = 0
    images: int = 0
    trained_states: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint."""
        vars(self).update(state)


def keep_weights_out(accelerator: Accelerator) -> None:
    """Have accelerate's state leave the network's weights to ``ImageModel.save_weights``: with LoRA they are a thousandth.

    Where weights are sharded accelerate writes its own copy all the same, and reads that one back.
    """

    def on_save(_models: list[nn.Module], weights: list[dict[str, Any]], _folder: str) -> None:
        weights.clear()

    def on_load(models: list[nn.Module], _folder: str) -> None:
        models.clear()

    accelerator.register_save_state_pre_hook(on_save)
    accelerator.register_load_state_pre_hook(on_load)


def save_checkpoint(folder: CheckpointFolder, learner: Learner, update: int, config: Mapping[str, Any]) -> Path:
    """Write a whole checkpoint: weights, averaged weights, optimiser, schedule, prompts, counters, configuration.

    Raises:
        CheckpointError: If it cannot be written; earlier ones stay.
    """
    accelerator = learner.accelerator
    with folder.staging(update, is_main=accelerator.is_main_process) as staging:
        accelerator.wait_for_everyone()
        accelerator.save_state(str(staging / "state"))
        _save_weights(learner, staging / "weights")
        if learner.average is not None:
            with learner.released_weights():
                _save_weights(learner, staging / "weights_ema")
        if accelerator.is_main_process:
            (staging / CONFIG_FILE).write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        accelerator.wait_for_everyone()
    accelerator.wait_for_everyone()
    return folder.path(update)


def _save_weights(learner: Learner, folder: Path) -> None:
    state = full_state(learner.model.module)
    if learner.accelerator.is_main_process:
        learner.model.save_weights(folder, state=state)


def load_checkpoint(path: Path, learner: Learner, config: Mapping[str, Any]) -> None:
    """Restore everything that :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: If it is damaged, or its configuration differs in anything that makes it another run.
    """
    check_complete(path)
    refuse_other_config(path, config, _FREE)
    if not is_sharded(learner.parameters):
        learner.model.load_weights(path / "weights")
    try:
        learner.accelerator.load_state(str(path / "state"))
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the state in {path} cannot be restored: {error}; was it written under another strategy (DDP, FSDP, DeepSpeed)?"
        ) from error
