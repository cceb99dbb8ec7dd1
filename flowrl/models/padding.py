"""Prompts of different lengths in one batch: rows padded to one length with a mask, trimmed again before the network sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["pad_tokens", "trim_tokens", "valid_tokens"]


def pad_tokens(tokens: Tensor, mask: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
    """Make rows of tokens as long as the longest prompt may be, so that rows of different calls fit together.

    Args:
        tokens: ``(batch, token, channel)`` with at most ``length`` tokens.
        mask: ``(batch, token)``, true or 1 at tokens of the prompt; None where all are.
        length: Tokens of a padded row.

    Returns:
        ``(batch, length, channel)``, zero beyond what was given, and the bool mask ``(batch, length)``.

    Raises:
        ValueError: If there are more than ``length`` tokens.
    """
    missing = length - tokens.shape[1]
    if missing < 0:
        raise ValueError(f"prompts of {tokens.shape[1]} tokens do not fit into max_sequence_length={length}; raise it, or shorten them")
    valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
    return pad(tokens, (0, 0, 0, missing)), pad(valid, (0, missing))


def trim_tokens(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off the columns at the end in which no row has a token, since attention to them is wasted.

    Args:
        tokens: ``(batch, token, channel)``.
        mask: ``(batch, token)`` bool; a row's own tokens may lie anywhere in it.

    Returns:
        The same up to the last column with a token, at least one.
    """
    longest = int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else 1
    return tokens[:, :longest], mask[:, :longest]


def valid_tokens(tokens: Tensor, mask: Tensor) -> list[Tensor]:
    """Each row without its padding, ``(token, channel)``, for networks that take lists."""
    return [row[valid] for row, valid in zip(tokens, mask, strict=True)]
