"""Behaviour cloning: a policy from demonstrations, as a config says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flowrl.errors import ConfigError
from flowrl.train import AdamW
from robot.composition import Sampling
from robot.demonstrations.data import DemonstrationSource
from robot.learning.blocks import NetworkConfig, require_positive
from robot.learning.encoders import EncoderConfig
from robot.learning.process import Process
from robot.learning.recipe import check_chunk

if TYPE_CHECKING:
    from robot.learning.progress import CloningSummary

__all__ = ["BehaviourCloning"]


@dataclass(frozen=True, kw_only=True)
class BehaviourCloning:
    """Train a policy on demonstrations.

    Every control step of an episode is the present of one chunk; before an episode's first and after its last step the nearest frame and
    action are repeated, so that a horizon longer than an episode is padded. Each process holds all demonstrations and takes its own part of
    every batch: two processes give what one gives, up to rounding.

    Attributes:
        run_dir: Where everything is written: ``policy.safetensors``, checkpoints, ``metrics.jsonl``, a learning curve and a report.
        demonstrations: What is imitated.
        process: Diffusion or flow.
        encoder: Which sensors are seen, and how.
        network: The backbone.
        sampling: How the policy draws its chunks; kept in its checkpoint.
        horizon: Control steps of a chunk.
        execute: Actions of a chunk that will be executed before the next one.
        first: Index of the present control step in a chunk; None lets a chunk begin at the oldest frame seen (``history − 1``), as
            Diffusion Policy does.
        steps: Optimiser steps.
        batch_size: Chunks per step, over all processes.
        optimizer: With its learning-rate schedule.
        max_grad_norm: Gradients are scaled down to this norm.
        ema_decay: Of the weight average, which is what is validated and saved; None for none.
        action_scaling: Actions to [−1, 1] by their range or their 1 % and 99 % quantiles, or to mean 0 and standard deviation 1.
        validation_share: Of the episodes, which are held out; 0 for none.
        log_every: Optimiser steps per line of metrics.
        validate_every: Optimiser steps between validations; the last state is always validated.
        checkpoint_every: Optimiser steps between checkpoints; the last state is always saved.
        keep_checkpoints: How many to keep.
        mixed_precision: Autocast in training; None leaves it to accelerate's own config. Weights stay float32.
        trackers: accelerate trackers beside ``metrics.jsonl``: ``tensorboard``, ``wandb`` (extra).
        seed: Of the first weights, batches, noise and the split.
        name: Of the policy in reports; the run folder's name where empty.

    Raises:
        ConfigError: If a number is out of range or the executed actions do not lie inside the chunk.
    """

    run_dir: str
    demonstrations: DemonstrationSource
    process: Process
    encoder: EncoderConfig
    network: NetworkConfig
    sampling: Sampling = field(default_factory=Sampling)
    horizon: int = 16
    execute: int = 8
    first: int | None = None
    steps: int = 2000
    batch_size: int = 128
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=1.0e-3, schedule="cosine", warmup_steps=50))
    max_grad_norm: float = 1.0
    ema_decay: float | None = 0.995
    action_scaling: Literal["min_max", "quantiles", "mean_std"] = "min_max"
    validation_share: float = 0.1
    log_every: int = 20
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    seed: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        try:
            require_positive(self, "steps", "batch_size", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not self.max_grad_norm > 0:
            raise ConfigError(f"max_grad_norm must be > 0, got {self.max_grad_norm}; 1 is usual")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie inside (0, 1), got {self.ema_decay}; null trains without an average")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"validation_share must lie in [0, 1), got {self.validation_share}; 0.1 is usual")
        check_chunk(self.horizon, self.present, self.execute)

    @property
    def present(self) -> int:
        """Index of the present control step in a chunk."""
        return self.encoder.history - 1 if self.first is None else self.first

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_dir)

    def share(self, processes: int) -> int:
        """Chunks of a batch per process.

        Raises:
            ConfigError: If a batch cannot be shared evenly.
        """
        if self.batch_size % processes:
            below = self.batch_size // processes * processes
            fitting = " or ".join(str(size) for size in (below, below + processes) if size)
            raise ConfigError(
                f"batch_size={self.batch_size} cannot be shared evenly by {processes} processes; set batch_size={fitting}, or start "
                "another number of processes"
            )
        return self.batch_size // processes

    def run(self, *, resume: bool = False) -> CloningSummary:
        """Train.

        Args:
            resume: Go on from the newest complete checkpoint of ``run_dir``; starts afresh where there is none.

        Raises:
            ConfigError: If the demonstrations do not fit, or ``run_dir`` already holds a run and ``resume`` is False.
            CheckpointError: If the checkpoint is damaged, or of another configuration or other demonstrations.
            NonFiniteError: If a loss or gradient is not finite.
            KeyboardInterrupt: After Ctrl-C or SIGTERM, once a checkpoint is written.
        """
        from robot.learning.session import Session

        return Session(self, resume=resume).loop()
