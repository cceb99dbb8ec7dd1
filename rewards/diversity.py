"""Diversity: how far a picture is from the others of its group, against collapse onto one picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from flowrl.rl import RewardBatch
from rewards.clip_models import ClipModel, ClipSource, load_clip
from rewards.known_answers import KnownAnswer
from rewards.known_pictures import photographs
from rewards.learned import Dtype, device_of
from rewards.pairs import check_groups, group_pairs
from rewards.pictures import check_samples
from rewards.published import CLIP_VIT_L14

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ClipFeatures", "Diversity", "PictureFeatures", "PixelFeatures"]


class PictureFeatures(Protocol):
    """Turns pictures into vectors whose distances mean something."""

    def features(self, samples: Tensor) -> Tensor:
        """The vectors of pictures (batch, 3, height, width): (batch, channel), float32."""
        ...


@dataclass(frozen=True, kw_only=True)
class PixelFeatures:
    """The picture itself, averaged down; needs no weights. Half the squared distance is half the mean squared difference.

    Attributes:
        side: Pixels to average down to.

    Raises:
        ValueError: If ``side`` is below 1.
    """

    side: int = 16

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side must be >= 1, got {self.side}")

    def features(self, samples: Tensor) -> Tensor:
        """See `PictureFeatures`."""
        small = adaptive_avg_pool2d(samples.detach().float(), self.side).flatten(1)
        return small / small.shape[1] ** 0.5


@dataclass(frozen=True, kw_only=True)
class ClipFeatures:
    """CLIP's unit vectors: what is shown, rather than pixels. Half the squared distance is 1 − cosine.

    Attributes:
        checkpoint: As for `rewards.CLIPScore`.
        sha256: Of the file of weights; None accepts any.
        tokenizer: Not used for pictures, but read with the checkpoint; None looks beside the weights.
        dtype: Of the network.
    """

    checkpoint: str = CLIP_VIT_L14.checkpoint
    sha256: str | None = None
    tokenizer: str | None = None
    dtype: Dtype = "float32"

    def features(self, samples: Tensor) -> Tensor:
        """See `PictureFeatures`."""
        clip = self.load(samples.device)
        with torch.autocast(samples.device.type, enabled=False):
            return clip.image_features(clip.pixels(samples.detach()))

    def load(self, device: torch.device | str) -> ClipModel:
        """The network, read once per process.

        Raises:
            RewardError: If weights are missing or do not fit.
        """
        source = ClipSource(checkpoint=self.checkpoint, published=CLIP_VIT_L14, sha256=self.sha256, tokenizer=self.tokenizer)
        return load_clip(source, device_of("auto", device), getattr(torch, self.dtype))


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """The mean of ``½‖f_i − f_j‖²`` over the other samples j of the group, f being features of the pictures.

    Within a group it favours the odd ones out, so alone it rewards noise: give it a small weight beside a reward of quality.

    Attributes:
        features: Of the pictures.
    """

    features: PictureFeatures = field(default_factory=PixelFeatures)

    needs_groups: ClassVar[bool] = True

    @property
    def weights(self) -> Mapping[str, float]:
        """One part, ``diversity``."""
        return {"diversity": 1.0}

    def load(self, device: torch.device | str = "cpu") -> None:
        """Read the features' weights now, if they have any.

        Args:
            device: Where the samples will be.

        Raises:
            RewardError: If weights are missing or do not fit.
        """
        if (load := getattr(self.features, "load", None)) is not None:
            load(device)

    def __call__(self, samples: Tensor, prompts: Sequence[str], groups: Tensor | None = None) -> RewardBatch:
        """Score samples; see `flowrl.rl.GroupReward`. A picture with a non-finite pixel scores NaN, and is no one's neighbour.

        Raises:
            ValueError: If the samples are not pictures, there are no groups, or one has a single member.
        """
        check_samples(samples, prompts)
        checked = check_groups(groups, len(samples))
        features = self.features.features(samples).cpu()
        first, second = group_pairs(checked)
        distance = ((features[first] - features[second]).double() ** 2).sum(1) / 2
        known = distance.isfinite()
        total = torch.zeros(len(samples), dtype=torch.float64)
        for row in (first, second):
            total = total.index_add(0, row[known], distance[known])
        count = torch.bincount(torch.cat([first[known], second[known]]), minlength=len(samples))
        return RewardBatch({"diversity": torch.where(count > 0, total / count, torch.nan).float().to(samples.device)})

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Of three pictures, two of them the same, the other one is the odd one out."""
        pictures = photographs()[[0, 1, 1]]
        return [KnownAnswer(name="the odd one out", pictures=pictures, prompts=("a photo",) * 3, order=((0, 1), (0, 2)))]
