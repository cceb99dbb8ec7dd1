"""Conditional flow matching: how a velocity field is learned from data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.flow.path import RectifiedFlow
from flowrl.shapes import RandomSource, Time, randn, state_mean

if TYPE_CHECKING:
    from flowrl.flow.condition import Condition
    from flowrl.flow.field import VelocityField

__all__ = ["flow_matching_error", "flow_matching_loss", "logit_normal_times"]


def flow_matching_loss(field: VelocityField, data: Tensor, noise: Tensor, t: Time, condition: Condition) -> Tensor:
    """Mean of :func:`flow_matching_error` over the state's axes, ``(batch,)``; the caller weights and averages."""
    return state_mean(flow_matching_error(field, data, noise, t, condition))


def flow_matching_error(field: VelocityField, data: Tensor, noise: Tensor, t: Time, condition: Condition) -> Tensor:
    """Squared error of the velocity at a random point of the straight path (arXiv:2210.02747, Eq. 9; 2209.03003, Eq. 1).

    Args:
        field: The field to train.
        data: ``(batch, ...)``.
        noise: Standard normal, the same shape.
        t: Noise level, ``()``, ``(batch,)`` or per token (Diffusion Forcing, arXiv:2407.01392).
        condition: One row per row of the data.

    Returns:
        ``(batch, ...)``, entry by entry, for losses that weight parts of a state differently.
    """
    point = RectifiedFlow().sample(data, noise, t)
    return (field(point.x_t, t, condition) - point.endpoints.velocity) ** 2


def logit_normal_times(count: int, generator: RandomSource = None, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Training times ``sigmoid(N(mean, std²))``, which dwell in the middle (SD3, arXiv:2403.03206, Eq. 19).

    Args:
        count: How many.
        generator: Source of randomness.
        mean: Of the logit; > 0 moves towards noise.
        std: Of the logit, > 0.

    Returns:
        ``(count,)`` in (0, 1), on the CPU.
    """
    return torch.sigmoid(mean + std * randn((count,), generator, device="cpu"))
