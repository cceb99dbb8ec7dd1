"""What every reward on pictures needs: the check of its arguments, and 8-bit pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrl.shapes import levels_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["check_samples", "levels"]


def check_samples(samples: Tensor, prompts: Sequence[str], *, least_side: int = 1) -> None:
    """Refuse what is not a batch of pictures with one prompt each.

    Args:
        samples: Should be ``(batch, 3, height, width)``, floating point.
        prompts: Should be as many.
        least_side: Pixels that height and width must have at least.

    Raises:
        ValueError: If it is not so.
    """
    if samples.ndim != 4 or samples.shape[1] != 3 or min(samples.shape[2:]) < least_side:  # noqa: PLR2004 - (batch, 3, height, width)
        remedy = "; score videos with a rewards.FrameReward" if samples.ndim == 5 else ""  # noqa: PLR2004 - (batch, frame, 3, ...)
        raise ValueError(
            f"samples must be (batch, 3, height, width) with at least {least_side} x {least_side} pixels, got {tuple(samples.shape)}"
            + remedy
        )
    if not samples.is_floating_point():
        raise ValueError(f"samples must be floating point in [0, 1], got {samples.dtype}; divide 8-bit pictures by 255")
    if len(samples) != len(prompts):
        raise ValueError(f"got {len(samples)} samples but {len(prompts)} prompts; give one prompt per sample")


def levels(samples: Tensor) -> Tensor:
    """Pictures as 8-bit RGB files have them.

    Args:
        samples: (batch, 3, height, width) in [0, 1]; what lies outside is clipped, NaN becomes black.

    Returns:
        (batch, height, width, 3) uint8 on the CPU, contiguous.
    """
    return levels_of(samples.nan_to_num()).byte().permute(0, 2, 3, 1).cpu().contiguous()
