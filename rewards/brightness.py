"""Brightness: the simplest reward, to see learning itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flowrl.rl import RewardBatch
from rewards.known_answers import KnownAnswer
from rewards.pictures import check_samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["Brightness"]


@dataclass(frozen=True, kw_only=True)
class Brightness:
    """Mean of all channels and pixels, in [0, 1]: 0 is black, 1 is white. The prompt plays no part."""

    @property
    def weights(self) -> Mapping[str, float]:
        """One part, ``brightness``."""
        return {"brightness": 1.0}

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score pictures; see `flowrl.rl.Reward`.

        Raises:
            ValueError: If the samples are not pictures, or there is not one prompt per picture.
        """
        check_samples(samples, prompts)
        return RewardBatch({"brightness": samples.detach().float().mean(dim=(1, 2, 3))})

    def known_answers(self) -> Sequence[KnownAnswer]:
        """White, grey, black."""
        pictures = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1, 1).expand(3, 3, 16, 16)
        return [KnownAnswer.of_pictures("white, grey, black", pictures, "a square", margin=0.4)]
