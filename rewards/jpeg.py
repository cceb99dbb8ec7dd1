"""JPEG compressibility (DDPO, arXiv:2305.13301, Sec. 5.1): a reward that no gradient reaches."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flowrl.rl import RewardBatch
from rewards.known_answers import KnownAnswer
from rewards.known_pictures import degraded, photographs
from rewards.pictures import check_samples, levels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["JpegCompressibility"]


@dataclass(frozen=True, kw_only=True)
class JpegCompressibility:
    """Minus the size of the picture as a JPEG file, in kB (1000 bytes); the prompt plays no part.

    Attributes:
        quality: Of the encoder, 1 to 95; DDPO uses 95.

    Raises:
        ValueError: If ``quality`` lies outside 1 to 95.
    """

    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:  # noqa: PLR2004 - Pillow's range
            raise ValueError(f"quality must be 1 to 95, got {self.quality}; above 95 Pillow's files grow without a visible gain")

    @property
    def weights(self) -> Mapping[str, float]:
        """One part, ``jpeg``."""
        return {"jpeg": 1.0}

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score pictures; see `flowrl.rl.Reward`. A picture with a non-finite pixel scores NaN, since it has no file.

        Raises:
            ValueError: If the samples are not pictures, or there is not one prompt per picture.
        """
        check_samples(samples, prompts)
        finite = samples.detach().isfinite().flatten(1).all(1)
        kilobytes = torch.tensor([self._bytes(picture) / 1000 for picture in levels(samples)], device=samples.device)
        return RewardBatch({"jpeg": torch.where(finite, -kilobytes, torch.nan)})

    def known_answers(self) -> Sequence[KnownAnswer]:
        """A grey square, a blurred photograph, the photograph."""
        photograph = photographs()[:1]
        pictures = torch.cat([torch.full_like(photograph, 0.5), degraded(photograph), photograph])
        return [KnownAnswer.of_pictures("grey, blurred, sharp", pictures, "a photo")]

    def _bytes(self, picture: Tensor) -> int:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(picture.numpy()).save(file, format="JPEG", quality=self.quality)
        return file.tell()
