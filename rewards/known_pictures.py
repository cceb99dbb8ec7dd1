"""Pictures for known answers: three photographs that come with installed libraries, and words and shapes that are drawn here."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from torch import Tensor

__all__ = ["PHOTOGRAPHS", "Shape", "degraded", "drawn_shapes", "drawn_word", "photographs"]

PHOTOGRAPHS = (
    "a photo of an old Chinese building with a curved roof",
    "a close-up photo of a flower with many petals",
    "a portrait photo of a woman in a dark navy uniform",
)
"""What the three photographs show: ``china.jpg`` and ``flower.jpg`` of scikit-learn, ``grace_hopper.jpg`` of Matplotlib."""

Shape = Literal["square", "circle", "triangle"]


@lru_cache(maxsize=4)
def photographs(side: int = 256) -> Tensor:
    """The three photographs, cut square and resized.

    Args:
        side: Pixels.

    Returns:
        (3, 3, side, side) in [0, 1], float32, in the order of `PHOTOGRAPHS`. Do not change it: it is kept.
    """
    from matplotlib.cbook import get_sample_data
    from PIL import Image
    from sklearn.datasets import load_sample_image

    portrait = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False))
    pictures = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")] + [portrait]
    return torch.stack([_tensor(_square(picture.convert("RGB"), side)) for picture in pictures])


def degraded(pictures: Tensor, *, factor: int = 16) -> Tensor:
    """The same pictures with one in ``factor`` of their pixels per side left, blocky and blurred.

    Args:
        pictures: (batch, 3, height, width) in [0, 1].
        factor: By how much each side shrinks on the way.
    """
    small = torch.nn.functional.avg_pool2d(pictures, factor)
    return torch.nn.functional.interpolate(small, size=pictures.shape[2:], mode="bilinear")


def drawn_word(words: str, *, side: int = 256, ink: str = "black", paper: str = "white") -> Tensor:
    """Words in Pillow's own typeface, centred on plain paper, one line each.

    Args:
        words: What is written; a line break begins a new line.
        side: Pixels.
        ink: Colour by name.
        paper: Likewise.

    Returns:
        (3, side, side) in [0, 1], float32.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (side, side), paper)
    longest = max(len(line) for line in words.split("\n"))
    font = ImageFont.load_default(size=min(side / 5, 1.5 * side / max(longest, 1)))
    ImageDraw.Draw(picture).multiline_text((side / 2, side / 2), words, fill=ink, font=font, anchor="mm", align="center")
    return _tensor(picture)


def drawn_shapes(shapes: Sequence[tuple[Shape, str]], *, side: int = 256) -> Tensor:
    """Flat shapes on white paper, side by side from left to right.

    Args:
        shapes: Shape and colour of each, such as ``[("circle", "red")]``.
        side: Pixels of the picture.

    Returns:
        (3, side, side) in [0, 1], float32.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (side, side), "white")
    draw, cell = ImageDraw.Draw(picture), side / len(shapes)
    radius = 0.35 * cell
    for index, (shape, colour) in enumerate(shapes):
        x, y = (index + 0.5) * cell, side / 2
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "square":
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    return _tensor(picture)


def _square(picture: Image, side: int) -> Image:
    width, height = picture.size
    cut = min(width, height)
    left, top = (width - cut) // 2, (height - cut) // 2
    return picture.crop((left, top, left + cut, top + cut)).resize((side, side))


def _tensor(picture: Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
