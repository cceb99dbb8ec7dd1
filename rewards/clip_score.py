"""CLIP score (arXiv:2104.08718): how well a picture fits its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rewards.clip_models import Backend, ClipSource
from rewards.clip_reward import ClipReward
from rewards.published import CLIP_VIT_L14

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rewards.clip_models import ClipModel

__all__ = ["CLIPScore"]


@dataclass(frozen=True, kw_only=True)
class CLIPScore(ClipReward):
    """The cosine of a picture's and its prompt's CLIP features, in [−1, 1].

    The number of papers that train on it and of G²RPO's tables (0.2 to 0.4). torchmetrics' is 100 times as much, and not below 0; that
    of arXiv:2104.08718 is 2.5 times as much, and not below 0.

    Attributes:
        checkpoint: A folder or a hub id in transformers' or open_clip's format. G²RPO's tables use ``apple/DFN5B-CLIP-ViT-H-14-378``,
            whose preprocessing its open_clip files name.
        sha256: Of the file of weights; None accepts any.
        tokenizer: Folder or hub id of CLIP's tokenizer; None looks beside the weights. Only for the back end ``transformers``.
        backend: ``transformers``, or ``open_clip`` (extra ``open-clip``) for a checkpoint with an ``open_clip_config.json``.

    Raises:
        ValueError: If a value is out of its range.
    """

    checkpoint: str = CLIP_VIT_L14.checkpoint
    sha256: str | None = None
    tokenizer: str | None = None
    backend: Backend = "transformers"

    part: ClassVar[str] = "clip"

    @property
    def source(self) -> ClipSource:
        """The CLIP that scores."""
        return ClipSource(
            checkpoint=self.checkpoint, published=CLIP_VIT_L14, sha256=self.sha256, tokenizer=self.tokenizer, backend=self.backend
        )

    def _scores(self, network: ClipModel, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        return network.cosines(network.pixels(samples), prompts)
