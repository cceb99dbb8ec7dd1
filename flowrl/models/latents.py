"""Latents as networks and decoders want them: packed into tokens, or with each channel's own scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["channel_scaled", "pack_patches", "unpack_patches"]


def pack_patches(latents: Tensor, side: int = 2) -> Tensor:
    """Square patches as tokens, row by row, each patch channel by channel (FLUX, Qwen-Image).

    Args:
        latents: ``(batch, channel, height, width)``; height and width are multiples of ``side``.
        side: Latent pixels per side of a patch.

    Returns:
        ``(batch, token, channel·side²)``.
    """
    return pixel_unshuffle(latents, side).flatten(2).transpose(1, 2)


def unpack_patches(tokens: Tensor, height: int, side: int = 2) -> Tensor:
    """The inverse of :func:`pack_patches`.

    Args:
        tokens: ``(batch, token, channel·side²)``.
        height: Of the latents; the width follows.
        side: Latent pixels per side of a patch.
    """
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // side, -1)), side)


def channel_scaled(latents: Tensor, config: Any) -> Tensor:
    """``latents·latents_std + latents_mean`` per channel: what the decoders of Wan and Qwen-Image take.

    Args:
        latents: ``(batch, channel, ...)``, of variance 1.
        config: Of the autoencoder.
    """
    mean, std = (torch.tensor(values).to(latents) for values in (config.latents_mean, config.latents_std))
    shape = (-1,) + (1,) * (latents.ndim - 2)
    return latents * std.view(shape) + mean.view(shape)
