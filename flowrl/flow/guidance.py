"""Guidance that is more than an extrapolation: fields that keep or limit its norm, or stop it at some noise level.

:class:`flowrl.flow.ClassifierFreeGuidance` is the plain one. Guidance makes velocities longer, which oversaturates pictures; the
fields here give the guided direction another length. Their formulas are those of the reference pipelines of Qwen-Image
(arXiv:2508.02324), Lumina-Image 2.0 (arXiv:2503.21758) and Z-Image (arXiv:2511.22699) as diffusers has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from flowrl.flow.condition import Condition
from flowrl.flow.field import ClassifierFreeGuidance, evaluations_per_state
from flowrl.shapes import Time, expand_time

__all__ = ["IntervalGuidance", "NormKeepingGuidance", "NormLimitingGuidance", "patch_norm", "row_norm"]

_TINY = 1e-12  # keeps a velocity of length 0 at 0


def row_norm(velocity: Tensor) -> Tensor:
    """The length of every row of a picture, over the last axis: ``(..., 1)``."""
    return torch.linalg.vector_norm(velocity, dim=-1, keepdim=True)


def patch_norm(velocity: Tensor, side: int = 2) -> Tensor:
    """The length of every token of a picture: over all channels of a square patch.

    Args:
        velocity: ``(batch, channel, height, width)``; height and width are multiples of ``side``.
        side: Latent pixels per side of one token.

    Returns:
        ``(batch, 1, height, width)``, constant within a patch.
    """
    squares = avg_pool2d(velocity.square().sum(dim=1, keepdim=True), side, divisor_override=1)
    return squares.sqrt().repeat_interleave(side, dim=-1).repeat_interleave(side, dim=-2)


@dataclass(frozen=True, kw_only=True)
class NormKeepingGuidance(ClassifierFreeGuidance):
    """``v = g·‖v_cond‖/‖g‖`` with the guided ``g = v_neg + scale·(v_cond − v_neg)``: its direction, the conditional velocity's length.

    Attributes:
        norm: What has a length: a function of a velocity whose result broadcasts against it. :func:`patch_norm` is Qwen-Image's,
            :func:`row_norm` Lumina2's.
    """

    norm: Callable[[Tensor], Tensor]

    def combined(self, negative: Tensor, conditional: Tensor) -> Tensor:
        """See :class:`ClassifierFreeGuidance`."""
        guided = super().combined(negative, conditional)
        return guided * (self.norm(conditional) / self.norm(guided).clamp_min(_TINY))


@dataclass(frozen=True, kw_only=True)
class NormLimitingGuidance(ClassifierFreeGuidance):
    """``v = g·min(1, limit·‖v_cond‖/‖g‖)`` with the guided ``g = v_neg + scale·(v_cond − v_neg)``, lengths over a whole state (Z-Image).

    Attributes:
        limit: Largest length, in lengths of the conditional velocity.

    Raises:
        ValueError: If the limit is not positive.
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.limit > 0:
            raise ValueError(f"limit must be > 0, got {self.limit}; use ClassifierFreeGuidance for no limit")

    def combined(self, negative: Tensor, conditional: Tensor) -> Tensor:
        """See :class:`ClassifierFreeGuidance`."""
        guided = super().combined(negative, conditional)
        most, length = (v.flatten(1).norm(dim=1) for v in (self.limit * conditional, guided))
        return guided * expand_time((most / length.clamp_min(_TINY)).clamp_max(1), guided)


@dataclass(frozen=True, kw_only=True)
class IntervalGuidance:
    """Guidance at noise levels ``t >= until``, the bare conditional field below (arXiv:2404.07724, with no upper end).

    Whatever the times, the network is called once, so that processes which wait for each other's calls stay in step.

    Attributes:
        guidance: Any guidance.
        until: The lowest guided noise level, in [0, 1].

    Raises:
        ValueError: If ``until`` is not in [0, 1].
    """

    guidance: ClassifierFreeGuidance
    until: float

    def __post_init__(self) -> None:
        if not 0 <= self.until <= 1:
            raise ValueError(f"until must be in [0, 1], got {self.until}; 0 guides everywhere")

    @property
    def evaluations(self) -> int:
        """Network evaluations per state where guidance acts; below ``until`` there is one half of them."""
        return evaluations_per_state(self.guidance)

    def __call__(self, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        """The velocity; see :class:`VelocityField`.

        Raises:
            ValueError: If the time is neither a scalar nor one per state.
        """
        time = torch.as_tensor(t, device=x_t.device)
        if time.ndim > 1:
            raise ValueError(f"guidance that ends at a noise level takes a time of shape () or ({len(x_t)},), got {tuple(time.shape)}")
        rows = (time >= self.until).expand(len(x_t)).nonzero()[:, 0]
        both = Condition.cat([self.guidance.away_from(condition[rows]), condition])
        times = torch.cat([time[rows], time]) if time.ndim else time
        negative, conditional = self.guidance.field(torch.cat([x_t[rows], x_t]), times, both).split([len(rows), len(x_t)])
        return conditional.index_copy(0, rows, self.guidance.combined(negative, conditional[rows]))
