"""A vision-language model that says which of two pictures is better."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from flowrl.rl import RewardBatch
from rewards.chat import ChatEndpoint, Question
from rewards.known_answers import KnownAnswer
from rewards.known_pictures import PHOTOGRAPHS, photographs
from rewards.pairs import check_groups, group_pairs, win_rates
from rewards.pictures import check_samples, levels
from rewards.remote.png import encode_png

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["VLMComparison", "read_preference"]

_QUESTION = """These two pictures were generated from the caption below. Compare them.
1. Alignment: are the objects, their attributes, their number and their relations as the caption says?
2. Quality: which one is clearer, more detailed, freer of artefacts and more pleasing?
Choose the one that fits the caption better while it looks better. End with one of these sentences: 'Image 1 is better than Image 2.', \
'Image 2 is better than Image 1.' or 'Both images are equally good.'
Caption: [{prompt}]"""

_PREFERENCE = re.compile(r"image\s*([12])\s+is\s+(?:\w+\s+)?better|(equally\s+good)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class VLMComparison:
    """The share of its comparisons within the group that a picture wins, a draw being half a win: pairwise preference as in Pref-GRPO.

    (arXiv:2508.20751, with UnifiedReward as the judge.) A group of G takes G·(G − 1)/2 questions, or G·``opponents``/2. Comparisons
    without an answer are left out; a picture without any scores NaN, and if there is no answer at all the call raises.

    Attributes:
        endpoint: Which model, and where.
        question: ``{prompt}`` stands for the prompt; the answer must end as the one here asks.
        opponents: Others of its group that each picture meets, an even number; None is all. Who meets whom is fixed by the order of rows.
        both_orders: Ask every pair twice, each picture first once, against a preference for the first; otherwise who is first alternates.

    Raises:
        ValueError: If ``question`` has no ``{prompt}`` or ``opponents`` is not a positive even number.
    """

    endpoint: ChatEndpoint
    question: str = _QUESTION
    opponents: int | None = None
    both_orders: bool = False

    needs_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if "{prompt}" not in self.question:
            raise ValueError(f"question must contain {{prompt}}, got {self.question!r}")
        if self.opponents is not None and (self.opponents < 1 or self.opponents % 2):
            raise ValueError(f"opponents must be a positive even number, or None for all, got {self.opponents}")

    @property
    def weights(self) -> Mapping[str, float]:
        """One part, ``win_rate``."""
        return {"win_rate": 1.0}

    def check(self) -> None:
        """See `flowrl.rl.check_ready`."""
        self.endpoint.check()

    def __call__(self, samples: Tensor, prompts: Sequence[str], groups: Tensor | None = None) -> RewardBatch:
        """Score samples; see `flowrl.rl.GroupReward`. A picture with a non-finite pixel is not shown and scores NaN.

        Raises:
            ValueError: If the samples are not pictures, there are no groups, or one has a single member.
            RewardError: If the model cannot be asked, or answers nothing that can be read.
        """
        return self.submit(samples, prompts, check_groups(groups, len(samples)))()

    def submit(self, samples: Tensor, prompts: Sequence[str], groups: Tensor) -> Callable[[], RewardBatch]:
        """See `flowrl.rl.submit_scores`."""
        check_samples(samples, prompts)
        first, second = self._pairs(check_groups(groups, len(samples)))
        finite = samples.detach().isfinite().flatten(1).all(1).cpu()
        shown = finite[first] & finite[second]
        first, second = first[shown], second[shown]
        files = [encode_png(picture) for picture in levels(samples).permute(0, 3, 1, 2)]
        questions = [
            Question(text=self.question.replace("{prompt}", prompts[one]), pictures=(files[one], files[other]))
            for one, other in zip(first.tolist(), second.tolist(), strict=True)
        ]
        pending = self.endpoint.ask(questions, read_preference)

        def compared() -> RewardBatch:
            values = [answer.value for answer in pending()]
            outcomes = torch.tensor([torch.nan if value is None else value for value in values])
            return RewardBatch({"win_rate": win_rates((first, second), outcomes, len(prompts)).to(samples.device)})

        return compared

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Of three photographs, the one that fits the prompt wins."""
        pictures = photographs()[[1, 0, 2]]
        return [KnownAnswer(name="photographs", pictures=pictures, prompts=(PHOTOGRAPHS[1],) * 3, order=((0, 1), (0, 2)))]

    def _pairs(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Who is shown first and second in each question."""
        first, second = group_pairs(groups)
        _, index, sizes = groups.unique(return_inverse=True, return_counts=True)
        place = torch.zeros_like(index)
        for group, size in enumerate(sizes.tolist()):
            place[index == group] = torch.arange(size)
        distance = place[second] - place[first]
        if self.opponents is not None:  # around a circle of the group's members, each meets the nearest
            near = torch.minimum(distance, sizes[index[first]] - distance) <= self.opponents // 2
            first, second, distance = first[near], second[near], distance[near]
        if self.both_orders:
            return torch.cat([first, second]), torch.cat([second, first])
        swapped = distance % 2 == 0
        return torch.where(swapped, second, first), torch.where(swapped, first, second)


def read_preference(answer: str) -> float | None:
    """1 if an answer prefers the first picture, 0 the second, 0.5 neither, None if it cannot be read; the last sentence counts."""
    found = list(_PREFERENCE.finditer(answer))
    if not found:
        return None
    choice = found[-1].group(1)
    return 0.5 if choice is None else float(choice == "1")
