"""What the rewards share that compare a picture's CLIP features with its prompt's."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewards.clip_models import ClipModel, ClipSource, load_clip
from rewards.known_pictures import PHOTOGRAPHS, photographs
from rewards.learned import LearnedReward
from rewards.self_test import KnownAnswer

if TYPE_CHECKING:
    import torch

__all__ = ["ClipReward"]


@dataclass(frozen=True, kw_only=True)
class ClipReward(LearnedReward):
    """A reward of one part from a CLIP.

    Raises:
        ValueError: If a value is out of its range.
    """

    @property
    @abstractmethod
    def source(self) -> ClipSource:
        """The CLIP that scores."""

    def known_answers(self) -> tuple[KnownAnswer, ...]:
        """Three photographs, each of which fits its own description better than the others'."""
        hint = f"are weights and tokenizer those of {self.source.published.name}?"
        return (KnownAnswer.matching("photographs", photographs(), PHOTOGRAPHS, hint=hint),)

    def _network(self, device: torch.device, dtype: torch.dtype) -> ClipModel:
        return load_clip(self.source, device, dtype)
