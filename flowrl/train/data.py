"""Pictures with captions to pretrain on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from flowrl.shapes import seeded_generator

__all__ = ["DIGIT_CAPTIONS", "DIGIT_PARTS", "DIGIT_WORDS", "CaptionedImages", "DigitPart", "Digits", "ImageTextData", "digit_scans"]

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_CAPTIONS = ("a handwritten {}", "the digit {}", "a scan of the digit {}", "{} written by hand")

DigitPart = Literal["generator", "legibility", "heldout", "test"]
DIGIT_PARTS: dict[DigitPart, int] = {"generator": 800, "legibility": 400, "heldout": 400, "test": 197}
_SPLIT_SEED = 0


@dataclass(frozen=True)
class CaptionedImages:
    """A data set in memory.

    Attributes:
        images: ``(picture, 3, height, width)`` in [0, 1].
        captions: For each picture, one or more wordings of its caption; one is drawn each time the picture is seen.

    Raises:
        ValueError: If there are no pictures, a picture has no caption, or the numbers of pictures and captions differ.
    """

    images: Tensor
    captions: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[1] != 3 or not len(self.images):  # noqa: PLR2004 - (picture, 3, height, width)
            raise ValueError(f"images must be (picture, 3, height, width) with at least one picture, got {tuple(self.images.shape)}")
        if len(self.images) != len(self.captions):
            raise ValueError(
                f"got {len(self.images)} pictures but captions for {len(self.captions)}; give each picture a tuple of captions"
            )
        if not all(self.captions):
            raise ValueError(
                f"picture {[bool(texts) for texts in self.captions].index(False)} has no caption; give each picture at least one"
            )


class ImageTextData(Protocol):
    """A data set that `flowrl pretrain` can learn from."""

    def load(self) -> CaptionedImages:
        """Read everything into memory."""
        ...


@dataclass(frozen=True, kw_only=True)
class Digits:
    """The 1797 handwritten digits that come with scikit-learn (8 x 8 scans, 16 grey levels), captioned in words.

    Attributes:
        part: Which scans; see `digit_scans`.
        image_size: Pixels per side, at least 8.
        captions: Wordings, each with one ``{}`` for the digit's name.
        caption_noise: Share of scans whose caption names a digit drawn at random, as captions from the web are often wrong. What a model
            learns to draw from them is clean, but without guidance often not what the prompt says.

    Raises:
        ValueError: If ``image_size`` is below 8, a wording has no ``{}`` or ``caption_noise`` lies outside [0, 1].
    """

    part: DigitPart = "generator"
    image_size: int = 16
    captions: tuple[str, ...] = DIGIT_CAPTIONS
    caption_noise: float = 0.0

    def __post_init__(self) -> None:
        _check_size(self.image_size)
        if odd := [text for text in self.captions if text.count("{}") != 1]:
            raise ValueError(f"each caption needs exactly one {{}} where the digit's name goes, got {odd}")
        if not 0 <= self.caption_noise <= 1:
            raise ValueError(f"caption_noise must lie in [0, 1], got {self.caption_noise}; 0 is none")

    def load(self) -> CaptionedImages:
        """The scans of this part, each with every wording of its caption."""
        images, labels = digit_scans(self.part, self.image_size)
        generator = seeded_generator(_SPLIT_SEED)
        wrong = torch.rand(len(labels), generator=generator) < self.caption_noise
        labels = torch.where(wrong, torch.randint(len(DIGIT_WORDS), (len(labels),), generator=generator), labels)
        wordings = [tuple(text.format(word) for text in self.captions) for word in DIGIT_WORDS]
        return CaptionedImages(images, tuple(wordings[label] for label in labels.tolist()))


def digit_scans(part: DigitPart, image_size: int = 16) -> tuple[Tensor, Tensor]:
    """One part of scikit-learn's digits, enlarged by bicubic interpolation; ink is 1, paper 0.

    The parts are disjoint: the generator, the reward's classifier, the held-out classifier and the test of both each have their own scans.
    They are consecutive runs (800, 400, 400 and 197 scans) of the order ``numpy.random.RandomState(0).permutation(1797)``, which NumPy
    guarantees to stay the same.

    Args:
        part: ``"generator"``, ``"legibility"``, ``"heldout"`` or ``"test"``.
        image_size: Pixels per side, at least 8.

    Returns:
        Pictures ``(scan, 3, image_size, image_size)`` float32 in [0, 1], and digits ``(scan,)`` int64.

    Raises:
        ValueError: If the part is unknown or ``image_size`` is below 8.
    """
    from sklearn.datasets import load_digits

    _check_size(image_size)
    rows = split_indices(part)
    digits = load_digits()
    scans = torch.from_numpy(digits.images / 16).float()[rows, None]
    pictures = torch.nn.functional.interpolate(scans, size=(image_size, image_size), mode="bicubic", align_corners=False)
    return pictures.clamp(0, 1).repeat(1, 3, 1, 1), torch.from_numpy(digits.target).long()[rows]


def split_indices(part: DigitPart) -> Tensor:
    """Row numbers of one part in scikit-learn's order, int64.

    Raises:
        ValueError: If the part is unknown.
    """
    import numpy as np

    if part not in DIGIT_PARTS:
        raise ValueError(f"unknown part {part!r} of the digits; allowed: {', '.join(DIGIT_PARTS)}")
    order = np.random.RandomState(_SPLIT_SEED).permutation(sum(DIGIT_PARTS.values()))
    start = sum(list(DIGIT_PARTS.values())[: list(DIGIT_PARTS).index(part)])
    return torch.from_numpy(order[start : start + DIGIT_PARTS[part]]).long()


def _check_size(image_size: int) -> None:
    if image_size < 8:  # noqa: PLR2004 - the scans' own size
        raise ValueError(f"image_size must be at least 8, the size of the scans, got {image_size}")
