"""Joining the processes of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from flowrl.errors import ConfigError, require

if TYPE_CHECKING:
    from accelerate import Accelerator

    from robot.learning.lesson import Training

__all__ = ["start_accelerator"]


def start_accelerator(job: Training) -> Accelerator:
    """Join the processes.

    Raises:
        ConfigError: If they were started under a strategy that shards weights: these networks are small.
        MissingExtraError: If a tracker is not installed.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, ProjectConfiguration

    if "wandb" in job.trackers:
        require("wandb", "wandb")
    settings: dict[str, Any] = {} if job.mixed_precision is None else {"mixed_precision": job.mixed_precision}
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else accelerate ignores torchrun there, and every process trains alone
        log_with=list(job.trackers) or None,
        project_config=ProjectConfiguration(project_dir=job.run_dir, logging_dir=str(job.folder / "tensorboard")),
        **settings,
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(
            f"{job.title} does not run under {accelerator.distributed_type.value}: its networks fit on one device; "
            "use plain data parallelism (accelerate launch --multi_gpu)"
        )
    return accelerator
