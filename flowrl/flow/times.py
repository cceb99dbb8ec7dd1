"""Grids of noise levels from 1 (noise) to 0 (data)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["dynamic_shift", "shift_time", "shifted_times"]


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Move times towards the noise end: ``shift·t / (1 + (shift − 1)·t)`` (SD3, arXiv:2403.03206, Eq. 23).

    Args:
        t: Any shape, in [0, 1]; 0 and 1 stay where they are.
        shift: > 0; 1 changes nothing, larger spends more steps at high noise.

    Raises:
        ValueError: If ``shift`` is not positive.
    """
    if not shift > 0:
        raise ValueError(f"shift must be > 0, got {shift}; 1 is the linear grid, SD3 uses 3")
    return shift * t / (shift * t + (1 - t))  # the form of the docstring rounds to above 1 at t = 1 for some shifts


def shifted_times(steps: int, shift: float = 1.0) -> Tensor:
    """A linear grid moved by ``shift``.

    Args:
        steps: Number of steps, at least 1.
        shift: See :func:`shift_time`.

    Returns:
        float64 ``(steps + 1,)``, from exactly 1.0 to exactly 0.0.

    Raises:
        ValueError: If ``steps`` < 1 or ``shift`` <= 0.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def dynamic_shift(
    tokens: int, *, base_tokens: int = 256, max_tokens: int = 4096, base_shift: float = 0.5, max_shift: float = 1.15
) -> float:
    """The shift for a picture of so many tokens: ``exp(mu)``, with mu linear in the number of tokens.

    This is the resolution-dependent shift of FLUX as diffusers computes it; the defaults are FLUX.1's.

    Args:
        tokens: Image tokens the transformer sees, such as 4096 for 1024 × 1024.
        base_tokens: Where mu is ``base_shift``.
        max_tokens: Where mu is ``max_shift``.
        base_shift: mu at ``base_tokens`` (a log-shift).
        max_shift: mu at ``max_tokens``.

    Raises:
        ValueError: If ``tokens`` < 1 or the two anchors coincide.
    """
    if tokens < 1 or base_tokens == max_tokens:
        raise ValueError(f"need tokens >= 1 and base_tokens != max_tokens, got {tokens}, {base_tokens} and {max_tokens}")
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (tokens - base_tokens))
