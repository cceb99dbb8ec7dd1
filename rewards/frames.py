"""Rewards of pictures, for videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flowrl.rl import Reward, RewardBatch, submit_scores
from flowrl.shapes import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["FrameReward"]


@dataclass(frozen=True, kw_only=True)
class FrameReward:
    """A reward of pictures on some frames of a video; each part is the mean over them.

    A frame that could not be scored leaves its video without a score (NaN). A reward that compares pictures compares the same frame of
    the videos of a group. Nothing here sees motion: a still picture scores as well as a film of it.

    Attributes:
        reward: Scores a frame.
        frames: How many to look at: the first, the last and evenly between them (1 is the middle one); None is all.

    Raises:
        ValueError: If ``frames`` is less than 1.
    """

    reward: Reward
    frames: int | None = 4

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}; None is all of them")

    @property
    def weights(self) -> Mapping[str, float]:
        """Those of the reward."""
        return self.reward.weights

    @property
    def needs_groups(self) -> bool:
        """Whether the reward compares the videos of a group."""
        return bool(getattr(self.reward, "needs_groups", False))

    def __call__(self, samples: Tensor, prompts: Sequence[str], groups: Tensor | None = None) -> RewardBatch:
        """Score videos; see `flowrl.rl.Reward`.

        Args:
            samples: (batch, frame, 3, height, width), float, in [0, 1].
            prompts: One per video.
            groups: (batch,) integer, for a reward that compares.

        Raises:
            ValueError: If the samples are not videos, there is not one prompt per video, or a reward that compares is given no groups.
        """
        if groups is None and self.needs_groups:
            raise ValueError("a reward that compares the videos of a group needs groups; give the number of each video's group")
        return self.submit(samples, prompts, torch.zeros(len(samples), dtype=torch.long) if groups is None else groups)()

    def submit(self, samples: Tensor, prompts: Sequence[str], groups: Tensor) -> Callable[[], RewardBatch]:
        """See `flowrl.rl.submit_scores`."""
        if samples.ndim != 5 or samples.shape[2] != 3 or len(samples) != len(prompts):  # noqa: PLR2004 - (batch, frame, 3, height, width)
            raise ValueError(
                f"samples must be videos (batch, frame, 3, height, width) with one prompt each, got {tuple(samples.shape)} and "
                f"{len(prompts)} prompts; pictures need no FrameReward"
            )
        chosen = self.chosen(samples.shape[1])
        pictures = samples[:, chosen].transpose(0, 1).flatten(0, 1)  # frame by frame, so that those which are compared follow one another
        number = (groups[None] * len(chosen) + torch.arange(len(chosen), device=groups.device)[:, None]).flatten()
        pending = submit_scores(self.reward, pictures, [*prompts] * len(chosen), number)
        return lambda: RewardBatch({name: part.view(len(chosen), -1).mean(0) for name, part in pending().parts.items()})

    def chosen(self, length: int) -> list[int]:
        """The frames that are scored of a video of so many, each once, in order."""
        return list(range(length)) if self.frames is None else spread(length, self.frames)
