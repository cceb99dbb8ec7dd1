"""PickScore (arXiv:2305.01569): which picture people pick for a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rewards.clip_models import ClipSource
from rewards.clip_reward import ClipReward
from rewards.preprocessing import crop_offset_rounded_down
from rewards.published import CLIP_TOKENIZER, PICKSCORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rewards.clip_models import ClipModel

__all__ = ["PickScore"]


@dataclass(frozen=True, kw_only=True)
class PickScore(ClipReward):
    """Logit scale times cosine of a picture's and its prompt's features of a fine-tuned CLIP ViT-H/14, about 17 to 24.

    The logit scale is 100, so tables with 0.22 give the cosine; Flow-GRPO trains on the score divided by 26. The texts are not cleaned, as
    published.

    Attributes:
        checkpoint: A folder or a hub id in transformers' format.
        sha256: Of the file of weights; None accepts any.
        tokenizer: Folder or hub id of CLIP's tokenizer.

    Raises:
        ValueError: If a value is out of its range.
    """

    checkpoint: str = PICKSCORE.checkpoint
    sha256: str | None = None
    tokenizer: str = CLIP_TOKENIZER.repository

    part: ClassVar[str] = "pickscore"

    @property
    def source(self) -> ClipSource:
        """The CLIP that scores."""
        return ClipSource(checkpoint=self.checkpoint, published=PICKSCORE, sha256=self.sha256, tokenizer=self.tokenizer, clean=False)

    def _scores(self, network: ClipModel, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        return network.logit_scale * network.cosines(network.pixels(samples, crop_offset_rounded_down), prompts)
