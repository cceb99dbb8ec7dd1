"""The policy gradient and its clipped surrogate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from flowrl.rl.objectives.base import KeptSteps, Stateless, StepBatch, register_objective

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PPOClip", "PolicyGradient"]


@register_objective("pg")
@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Stateless):
    """REINFORCE: ``loss = −mean(A·log_ratio)``, whose gradient is ``−A·∇log π`` at every ratio.

    Right for one update a rollout; it does not notice when the policy has moved away from the one that rolled out.
    Metrics: ``ratio_mean``, ``ratio_variance``, ``ratio_max_dev``.
    """

    separable: ClassVar[bool] = True

    def __call__(
        self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, context: StepBatch | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its metrics; see :class:`flowrl.rl.Objective`."""
        del context  # the ratios are all it reads
        kept = KeptSteps.select(log_ratio, advantage, mask)
        return -kept.mean(kept.advantage * kept.log_ratio), kept.ratio_metrics()


@register_objective("ppo_clip")
@dataclass(frozen=True, kw_only=True)
class PPOClip(Stateless):
    """PPO's pessimistic clipped surrogate (arXiv:1707.06347, Eq. 7), optionally with a KL to the reference model (arXiv:2402.03300, Eq. 3).

    ``loss = −mean(min(r·A, clip(r, 1 − clip_low, 1 + clip_high)·A)) + kl_weight·mean(KL(π ‖ π_ref))``

    The default suits log-probabilities that are means over the state's axes, as image papers take them; for sums the
    robot papers use 0.01 to 0.2. Metrics: ``clip_fraction``, the share of kept entries whose gradient the clip stops;
    ``ratio_mean``, ``ratio_variance``, ``ratio_max_dev``; where ``kl_weight`` > 0 also ``kl``, nats, reduced as the log-ratio is.

    Attributes:
        clip: How far the ratio may move from 1, to both sides.
        clip_low: Overrides ``clip`` below 1.
        clip_high: Overrides ``clip`` above 1 (DAPO, arXiv:2503.14476).
        kl_weight: Weight of the exact KL of each transition to the reference, read from ``context.kl_reference``.
    """

    clip: float = 1e-4
    clip_low: float | None = None
    clip_high: float | None = None
    kl_weight: float = 0.0

    separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("clip", "clip_low", "clip_high"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}; the image papers use 1e-4 with mean log-probabilities")
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight must be >= 0 and finite, got {self.kl_weight}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest ratio that still gets a gradient in the direction it moved."""
        low = self.clip if self.clip_low is None else self.clip_low
        high = self.clip if self.clip_high is None else self.clip_high
        return 1 - low, 1 + high

    def __call__(
        self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, context: StepBatch | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its metrics; see :class:`flowrl.rl.Objective`."""
        kept = KeptSteps.select(log_ratio, advantage, mask)
        ratio = kept.log_ratio.exp()
        low, high = self.bounds
        loss = -kept.mean(torch.minimum(ratio * kept.advantage, ratio.clamp(low, high) * kept.advantage))
        stopped = ((kept.advantage > 0) & (ratio > high)) | ((kept.advantage < 0) & (ratio < low))
        metrics = {"clip_fraction": kept.mean(stopped.to(ratio.dtype)), **kept.ratio_metrics()}
        if self.kl_weight > 0:
            kl = kept.context_mean(context, "kl_reference")
            loss = loss + self.kl_weight * kl
            metrics["kl"] = kl.detach()
        return loss, metrics
