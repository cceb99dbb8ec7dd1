"""Patches of a latent as tokens, for the networks that take a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import pixel_shuffle, pixel_unshuffle

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(latents: Tensor, patch: int = 2) -> Tensor:
    """One token per square patch, row by row: ``(batch, channel, height, width)`` to ``(batch, token, channel * patch²)``.

    Within a token the channel varies slowest, then the row, then the column (FLUX and Qwen-Image).
    """
    return pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int, patch: int = 2) -> Tensor:
    """The inverse of :func:`pack`; height and width are the latent's."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // patch, width // patch)), patch)
