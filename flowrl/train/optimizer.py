"""Optimiser, learning-rate schedule and weight average as one component each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = ["AdamW"]


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

        optimizer = torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
        return optimizer, get_scheduler(self.schedule, optimizer, num_warmup_steps=self.warmup_steps, num_training_steps=total_steps)
