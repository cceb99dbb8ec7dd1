"""At which noise levels a world-action model is trained: a time per frame, or fewer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["IndependentTimes", "JointTimes", "SharedTimes", "TrainingTimes"]


class TrainingTimes(Protocol):
    """Noise levels to train at."""

    def draw(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """Times of the frames and, last, of the actions, ``(batch, frame + 1)`` in [0, 1], on the CPU.

        Args:
            batch: Rows.
            frames: Predicted frames.
            generator: Source of randomness, on the CPU.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class IndependentTimes:
    """Every frame and the actions at times of their own, uniform in [0, 1] (Diffusion Forcing, arXiv:2407.01392; arXiv:2605.07794).

    Schedules hold frames at exactly 1 (masked) or 0 (known), where a uniform time almost never lies; the two shares put weight there.

    Attributes:
        masked: Share of the frames' times that are exactly 1.
        known: Share of the frames' times that are exactly 0.

    Raises:
        ValueError: If a share is negative, or both together exceed 1.
    """

    masked: float = 0.0
    known: float = 0.0

    def __post_init__(self) -> None:
        if not (self.masked >= 0 and self.known >= 0 and self.masked + self.known <= 1):
            raise ValueError(f"masked and known must be >= 0 and at most 1 together, got {self.masked} and {self.known}; 0.1 is much")

    def draw(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """See :class:`TrainingTimes`."""
        times = torch.rand(batch, frames + 1, generator=generator)
        if not self.masked + self.known:
            return times
        chosen = torch.rand(batch, frames, generator=generator)
        times[:, :-1][chosen < self.masked] = 1.0
        times[:, :-1][chosen >= 1 - self.known] = 0.0
        return times


@dataclass(frozen=True, kw_only=True)
class SharedTimes:
    """One time for all frames, another one for the actions."""

    def draw(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """See :class:`TrainingTimes`."""
        video, action = torch.rand(batch, 2, generator=generator).split(1, dim=1)
        return torch.cat([video.expand(-1, frames), action], dim=1)


@dataclass(frozen=True, kw_only=True)
class JointTimes:
    """One time for frames and actions: the model is trained for the shared schedule and for no other."""

    def draw(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """See :class:`TrainingTimes`."""
        return torch.rand(batch, 1, generator=generator).expand(-1, frames + 1)
