"""HPSv2 (arXiv:2306.09341): how well people like a picture for a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rewards.clip_conversion import OpenClipArchitecture
from rewards.clip_models import Backend, ClipSource
from rewards.clip_reward import ClipReward
from rewards.learned import LearnedReward
from rewards.preprocessing import hps_pixels
from rewards.published import CLIP_TOKENIZER, HPS_V2_0, HPS_V2_1

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rewards.clip_models import ClipModel

__all__ = ["HPSv2"]

VIT_H14 = OpenClipArchitecture(vision_head_width=80)
_PUBLISHED = {"2.0": HPS_V2_0, "2.1": HPS_V2_1}


@dataclass(frozen=True, kw_only=True)
class HPSv2(ClipReward):
    """The cosine of a picture's and its prompt's features of a fine-tuned CLIP ViT-H/14, without the logit scale.

    Good pictures have about 0.28 under version 2.0 and 0.30 under 2.1; the versions cannot be compared. Equal to the package ``hpsv2`` in
    float32 (its own run in float16 knows steps of 2.4e-4). Pictures are resized with anti-aliasing, as by torchvision since 0.17.

    Attributes:
        version: 2.0 or 2.1: which weights, where ``checkpoint`` is not given; 2.1 was trained on better data.
        checkpoint: Their file, a path or ``owner/name:file`` on the hub; None takes the published ones.
        sha256: Of that file; None accepts any.
        tokenizer: Folder or hub id of CLIP's tokenizer; only for the back end ``transformers``.
        backend: ``transformers``, or ``open_clip`` (extra ``open-clip``), which brings its tokenizer.

    Raises:
        ValueError: If a value is out of its range.
    """

    version: str | float = "2.1"
    checkpoint: str | None = None
    sha256: str | None = None
    tokenizer: str = CLIP_TOKENIZER.repository
    backend: Backend = "transformers"

    part: ClassVar[str] = "hpsv2"

    def __post_init__(self) -> None:
        LearnedReward.__post_init__(self)
        if str(self.version) not in _PUBLISHED:
            raise ValueError(f"version must be {' or '.join(_PUBLISHED)}, got {self.version}")
        object.__setattr__(self, "version", str(self.version))  # YAML reads 2.1 as a number

    @property
    def source(self) -> ClipSource:
        """The CLIP that scores."""
        published = _PUBLISHED[str(self.version)]
        return ClipSource(
            checkpoint=self.checkpoint or published.checkpoint,
            published=published,
            sha256=self.sha256,
            tokenizer=self.tokenizer,
            backend=self.backend,
            architecture=VIT_H14,
        )

    def _scores(self, network: ClipModel, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        return network.cosines(hps_pixels(samples, network.pixels.size), prompts)
