"""What one training loop needs from the jobs that share it: their settings, and what differs between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from flowrl.errors import ConfigError
from flowrl.train import AdamW
from robot.learning.blocks import require_positive
from robot.learning.files import FileKind

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from robot.learning.progress import TrainingSummary

__all__ = ["Curve", "Lesson", "Training"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What validation measures, as a chart of the report.

    Attributes:
        title: Of the chart.
        note: What it means.
        lines: Name in ``metrics.jsonl`` (``eval/action_error``) to label.
    """

    title: str
    note: str
    lines: Mapping[str, str]


class Lesson(ABC):
    """What differs between jobs: the data in memory, the networks, the loss, what validation measures, and the file that is left.

    Attributes:
        facts: What the model file keeps of the demonstrations: ``sha256``, ``episodes``, ``held_out``, ``steps``, ``env``.
        examples: How many there are to train on.
    """

    source: ClassVar[str] = "demonstrations"
    """What the fingerprint is of, for messages."""

    facts: Mapping[str, Any]
    examples: int

    @property
    def fingerprint(self) -> str:
        """Of everything that is learned from and not in the configuration; a resumed run must find the same."""
        return str(self.facts["sha256"])

    @abstractmethod
    def begin(self, device: torch.device) -> nn.Module:
        """Put the data on a device and build the networks, with fresh weights from torch's global generator."""

    @abstractmethod
    def loss(self, module: nn.Module, rows: Tensor, part: slice, step: int) -> Tensor:
        """The loss of a process's part of a batch, a scalar with graph.

        Args:
            module: What :meth:`begin` built, as accelerate wraps it: every pass goes through its ``forward``.
            rows: Examples of this part.
            part: Where they lie in the whole batch. Noise is drawn for the whole batch, so that it does not depend on the processes.
            step: Optimiser step, which determines the noise.
        """

    @abstractmethod
    def validate(self, module: nn.Module) -> dict[str, float]:
        """Measures on held-out episodes, by name, with the same noise each time; empty where none were held out.

        Args:
            module: What :meth:`begin` built; left in training mode.
        """

    @abstractmethod
    def save(self, path: Path, module: nn.Module, training: Mapping[str, Any]) -> None:
        """Write the model file.

        Args:
            path: Where.
            module: What :meth:`begin` built.
            training: Facts about where it came from, for the file.
        """


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """A job that trains networks of one device on demonstrations, with accelerate, and goes on bit for bit where it was stopped.

    Each process holds all demonstrations and takes its own part of every batch: two processes give what one gives, up to rounding.

    Attributes:
        run_dir: Where everything is written: the model file, checkpoints, ``metrics.jsonl``, a learning curve and a report.
        steps: Optimiser steps.
        batch_size: Examples per step, over all processes.
        optimizer: With its learning-rate schedule.
        max_grad_norm: Gradients are scaled down to this norm.
        ema_decay: Of the weight average, which is what is validated and saved; None for none.
        validation_share: Of the episodes, which are held out; 0 for none.
        log_every: Optimiser steps per line of metrics.
        validate_every: Optimiser steps between validations; the last state is always validated.
        checkpoint_every: Optimiser steps between checkpoints; the last state is always saved.
        keep_checkpoints: How many to keep.
        mixed_precision: Autocast in training; None leaves it to accelerate's own config. Weights stay float32.
        trackers: accelerate trackers beside ``metrics.jsonl``: ``tensorboard``, ``wandb`` (extra).
        seed: Of the first weights, batches, noise and the split.
        name: Of the model in reports; the run folder's name where empty.

    Raises:
        ConfigError: If a number is out of range.
    """

    title: ClassVar[str]
    """What the job does, for the report."""
    kind: ClassVar[FileKind]
    """Of the model file that it leaves."""
    curves: ClassVar[tuple[Curve, ...]] = ()
    """What validation measures beside ``eval/loss``."""
    shown: ClassVar[tuple[str, ...]] = ()
    """Fields that the report's head names."""
    pictures: ClassVar[Mapping[str, str]] = {}
    """PNG files that validation leaves in the run folder, and what the report says of each."""

    run_dir: str
    steps: int = 2000
    batch_size: int = 128
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=1.0e-3, schedule="cosine", warmup_steps=50))
    max_grad_norm: float = 1.0
    ema_decay: float | None = 0.995
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

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_dir)

    @property
    def called(self) -> str:
        """The model's name: the run folder's where none is given."""
        return self.name or self.folder.resolve().name

    def share(self, processes: int) -> int:
        """Examples of a batch per process.

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

    @abstractmethod
    def lesson(self) -> Lesson:
        """Load and check the data.

        Raises:
            ConfigError: If the demonstrations do not fit.
        """

    def run(self, *, resume: bool = False) -> TrainingSummary:
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
