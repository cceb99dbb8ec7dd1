"""Latents as decoders want them, each channel with its own scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["channel_scaled"]


def channel_scaled(latents: Tensor, config: Any) -> Tensor:
    """``latents·latents_std + latents_mean`` per channel: what the decoders of Wan and Qwen-Image take.

    Args:
        latents: ``(batch, channel, ...)``, of variance 1.
        config: Of the autoencoder.
    """
    mean, std = (torch.tensor(values).to(latents) for values in (config.latents_mean, config.latents_std))
    shape = (-1,) + (1,) * (latents.ndim - 2)
    return latents * std.view(shape) + mean.view(shape)
