"""Optimiser, learning-rate schedule and weight average as one component each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from flowrl.errors import require

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = ["AdamW", "AdamW8bit"]


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW with a schedule of diffusers' ``get_scheduler``.

    Attributes:
        lr: Learning rate, > 0. G²RPO uses 2e-6 for full fine-tuning, Flow-GRPO 3e-4 with LoRA.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled decay.
        schedule: ``constant``, ``constant_with_warmup``, ``linear`` or ``cosine``.
        warmup_steps: Optimiser steps of linear warm-up.

    Raises:
        ValueError: If ``lr`` is not positive or ``warmup_steps`` negative.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1.0e-8
    weight_decay: float = 1.0e-4
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be >= 0, got {self.warmup_steps}")

    def build(self, parameters: Iterable[nn.Parameter], total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """The optimiser, and the schedule over ``total_steps`` optimiser steps."""
        from diffusers.optimization import get_scheduler

        optimizer = self.optimizer(parameters)
        return optimizer, get_scheduler(self.schedule, optimizer, num_warmup_steps=self.warmup_steps, num_training_steps=total_steps)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimiser alone."""
        return torch.optim.AdamW(parameters, **self._numbers())

    def _numbers(self) -> dict[str, Any]:
        return {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(AdamW):
    """AdamW whose moments take a byte each, quantised in blocks of 256 (arXiv:2110.02861): 2 bytes a weight instead of 8.

    From the extra ``bitsandbytes``. Weights and gradients stay float32. It does not know sharded weights (FSDP 2).

    Attributes:
        quantise_from: Tensors with fewer weights keep float32 moments, as biases and norms should; at least 1.

    Raises:
        ValueError: See :class:`AdamW`; also if ``quantise_from`` < 1.
        MissingExtraError: When it is built, if bitsandbytes is not installed.
    """

    quantise_from: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantise_from < 1:
            raise ValueError(f"quantise_from must be at least 1, got {self.quantise_from}; 1 quantises every tensor")

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimiser alone."""
        library = require("bitsandbytes.optim", "bitsandbytes")
        return library.AdamW8bit(parameters, min_8bit_size=self.quantise_from, **self._numbers())
