"""How a rollout is learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["UpdateSettings"]


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """How a rollout is learned from.

    Attributes:
        micro_batch: Parents per forward and backward pass, per process; each trains all its children.
        epochs: Passes over the rollout; from the second on the ratio leaves 1 and the clip acts.
        minibatches: Optimiser steps per pass; the parents are cut into so many parts.
        cut_by: Into what: ``time``, noisiest first, so that as many parts as there are stochastic steps give one optimiser step per
            denoising step, as the official G²RPO script for HPSv2 does; or ``sample``, each part with all steps of its share of the
            rows, as in the scripts of DanceGRPO, MixGRPO and Flow-GRPO. A parent that rows share goes with the first of them.
        max_grad_norm: Gradients are scaled down to this norm.
        old_log_prob: ``rollout`` takes the old log-probabilities from the sampler; ``recompute`` takes them from a pass of the
            training network before the first step, which makes the ratio exactly 1 there even where bfloat16 kernels give other
            numbers for other batch sizes.
        ratio_tolerance: Largest allowed distance of the ratio from 1 before the first update of a run. Keep it well below the clip.

    Raises:
        ValueError: If a count is below 1, a limit is not positive, or ``cut_by`` is unknown.
    """

    micro_batch: int = 8
    epochs: int = 1
    minibatches: int = 1
    cut_by: Literal["time", "sample"] = "time"
    max_grad_norm: float = 1.0
    old_log_prob: Literal["rollout", "recompute"] = "rollout"
    ratio_tolerance: float = 2.0e-5

    def __post_init__(self) -> None:
        for name in ("micro_batch", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.cut_by not in ("time", "sample"):
            raise ValueError(f"cut_by must be 'time' or 'sample', got {self.cut_by!r}")
        for name in ("max_grad_norm", "ratio_tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps per rollout."""
        return self.epochs * self.minibatches
