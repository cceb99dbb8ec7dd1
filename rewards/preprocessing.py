"""How scorers see pictures: the published preprocessing, on whole batches and on the pictures' device.

The original scorers read 8-bit picture files, so the samples are rounded to 256 levels first. Two families follow: those that resize
8-bit pictures with Pillow (CLIP, PickScore, the aesthetic predictor, ImageReward), and HPSv2, which resizes floating-point tensors.
A picture with a NaN pixel stays NaN all the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from flowrl.shapes import levels_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "OPENAI_MEAN",
    "OPENAI_STD",
    "ClipPixels",
    "crop_offset_rounded",
    "crop_offset_rounded_down",
    "hps_pixels",
    "pillow_resized",
]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Interpolation = Literal["bicubic", "bilinear"]


def pillow_resized(levels: Tensor, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Tensor:
    """Resize 8-bit pictures as Pillow does: along the rows, rounded to 8 bits, then along the columns, rounded again.

    Equal to ``Image.resize`` up to one level, on about one pixel in a thousand (Pillow's weights are fixed-point numbers). Pillow 13 begins
    with the columns where they shrink more than the rows, which no resizing that keeps the proportions does; this is the order of before.

    Args:
        levels: (batch, channel, height, width), whole numbers 0 to 255.
        size: New height and width, pixels.
        interpolation: Both use the wide, anti-aliasing kernel where they shrink; bicubic is Keys' with a = −0.5.

    Returns:
        (batch, channel, *size), whole numbers 0 to 255.
    """
    for target in ((levels.shape[-2], size[1]), size):
        if tuple(levels.shape[-2:]) != target:
            resized = interpolate(levels, size=target, mode=interpolation, align_corners=False, antialias=True)
            levels = resized.clamp(0, 255).round()
    return levels


def crop_offset_rounded(surplus: int) -> int:
    """Pixels cut off before a centre crop by torchvision and so by CLIP, open_clip and ImageReward: half, rounded to even."""
    return round(surplus / 2)


def crop_offset_rounded_down(surplus: int) -> int:
    """Pixels cut off before a centre crop by transformers and so by PickScore: half, rounded down."""
    return surplus // 2


@dataclass(frozen=True, kw_only=True)
class ClipPixels:
    """CLIP's preprocessing (arXiv:2103.00020): shortest side to ``size``, centre crop, normalise.

    Attributes:
        size: Side of the square that the network sees, pixels.
        squash: Resize to the square whatever the proportions, as the DFN checkpoints were trained, instead of cropping.
        interpolation: Of the resizing.
        mean: Per channel, of pictures in [0, 1].
        std: Likewise.
    """

    size: int = 224
    squash: bool = False
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def __call__(self, samples: Tensor, crop_offset: Callable[[int], int] = crop_offset_rounded) -> Tensor:
        """What the network sees, (batch, 3, size, size), float32.

        Args:
            samples: (batch, 3, height, width) in [0, 1].
            crop_offset: Where the centre crop begins, of how many pixels are too many.
        """
        levels = pillow_resized(levels_of(samples), self._resized(*samples.shape[-2:]), self.interpolation)
        top, left = (crop_offset(side - self.size) for side in levels.shape[-2:])
        return _normalised(levels[..., top : top + self.size, left : left + self.size] / 255, self.mean, self.std)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.squash:
            return self.size, self.size
        shortest = min(height, width)
        return int(self.size * height / shortest), int(self.size * width / shortest)


def hps_pixels(samples: Tensor, size: int = 224) -> Tensor:
    """HPSv2's preprocessing: longest side to ``size``, black borders, normalise.

    Bicubic, anti-aliased, on floating-point numbers: unlike Pillow's, values may leave [0, 1]. The borders are black before normalising.

    Args:
        samples: (batch, 3, height, width) in [0, 1].
        size: Side of the square that the network sees, pixels.

    Returns:
        (batch, 3, size, size), float32.
    """
    pictures = levels_of(samples) / 255
    scale = size / max(pictures.shape[-2:])
    height, width = (round(side * scale) for side in pictures.shape[-2:])
    if tuple(pictures.shape[-2:]) != (height, width):
        pictures = interpolate(pictures, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
    top, left = (size - height) // 2, (size - width) // 2
    return _normalised(pad(pictures, (left, size - width - left, top, size - height - top)), OPENAI_MEAN, OPENAI_STD)


def _normalised(pictures: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    centre, scale = (torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in (mean, std))
    return (pictures - centre) / scale
