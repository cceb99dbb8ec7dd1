"""A vision-language model that gives marks, picture by picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.rl import RewardBatch
from rewards.chat import ChatEndpoint, Question
from rewards.known_answers import KnownAnswer
from rewards.known_pictures import PHOTOGRAPHS, photographs
from rewards.pictures import check_samples, levels
from rewards.remote.png import encode_png

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["AspectMarks", "FinalMark", "Marks", "VLMJudge"]

_FINAL_MARK = """This picture was generated from the caption below. Judge two things.
1. Alignment: are the objects, their attributes, their number and their relations as the caption says?
2. Quality: is the picture clear, detailed, free of artefacts and pleasing?
List the caption's key elements as 'element (type): value', value being 1 if the picture shows it and 0 if not. Then, on a line of its \
own, write 'Final Score: ' and one number from 1 (poor) to 5 (excellent).
Caption: [{prompt}]"""

_ASPECT_MARKS = """This picture was generated from the caption below. Give it three marks, each a number from 1 (poor) to 5 (excellent).
Alignment: does the picture show what the caption says?
Coherence: is it consistent, without glitches or distorted objects?
Style: is it pleasing, whatever the caption says?
Answer with three lines and nothing else:
Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z
Caption: [{prompt}]"""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """A question for marks, and where they stand in the answer: the last number after each label and a colon.

    Attributes:
        question: ``{prompt}`` stands for the prompt.
        labels: Name of a part to its label in the answer; capitals do not matter.
        lowest: Mark; one outside the range is not counted as an answer.
        highest: Mark.

    Raises:
        ValueError: If ``question`` has no ``{prompt}``, there are no labels or the range is empty.
    """

    question: str
    labels: Mapping[str, str]
    lowest: float = 1.0
    highest: float = 5.0

    def __post_init__(self) -> None:
        if "{prompt}" not in self.question or not self.labels or not self.lowest < self.highest:
            raise ValueError(
                f"question must contain {{prompt}}, labels name at least one part and lowest lie below highest, "
                f"got {self.question!r}, {dict(self.labels)}, {self.lowest} and {self.highest}"
            )

    def read(self, answer: str) -> list[float] | None:
        """The marks in an answer, in the order of the labels, or None if one is missing or out of range."""
        marks = [self._mark(answer, label) for label in self.labels.values()]
        return None if None in marks else [mark for mark in marks if mark is not None]

    def _mark(self, answer: str, label: str) -> float | None:
        # "**Final Score:** 4.5/5", "Final Score (1-5): 4": stars, a bracket and white space may stand around the colon
        found = re.findall(rf"{re.escape(label)}[\s*]*(?:\([^)]*\))?[\s*]*:[\s*]*(\d+(?:\.\d+)?)", answer, re.IGNORECASE)
        mark = float(found[-1]) if found else None
        return mark if mark is not None and self.lowest <= mark <= self.highest else None


@dataclass(frozen=True, kw_only=True)
class FinalMark(Marks):
    """One mark for alignment and quality together, in the form that UnifiedReward (arXiv:2503.05236) answers with ``Final Score``."""

    question: str = _FINAL_MARK
    labels: Mapping[str, str] = field(default_factory=lambda: {"judge": "Final Score"})


@dataclass(frozen=True, kw_only=True)
class AspectMarks(Marks):
    """Three marks, in the form that UnifiedReward from version 1.5 on answers: alignment, coherence and style."""

    question: str = _ASPECT_MARKS
    labels: Mapping[str, str] = field(
        default_factory=lambda: {
            "judge_alignment": "Alignment Score",
            "judge_coherence": "Coherence Score",
            "judge_style": "Style Score",
        }
    )


@dataclass(frozen=True, kw_only=True)
class VLMJudge:
    """The marks that a vision-language model gives to each picture for its prompt, 1 to 5 if nothing else is asked for.

    Pictures leave this machine if the endpoint is elsewhere. A picture whose question fails after all tries scores NaN; if none is
    answered, the call raises. While the model answers, the trainer draws the next part of the rollout.

    Attributes:
        endpoint: Which model, and where.
        marks: What is asked: `rewards.FinalMark`, `rewards.AspectMarks`, or `rewards.Marks` with a question of your own.
    """

    endpoint: ChatEndpoint
    marks: Marks = field(default_factory=FinalMark)

    @property
    def weights(self) -> Mapping[str, float]:
        """A part for each mark."""
        return dict.fromkeys(self.marks.labels, 1.0)

    def check(self) -> None:
        """See `flowrl.rl.check_ready`."""
        self.endpoint.check()

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score pictures; see `flowrl.rl.Reward`. A picture with a non-finite pixel is not shown and scores NaN.

        Raises:
            ValueError: If the samples are not pictures, or there is not one prompt per picture.
            RewardError: If the model cannot be asked, or answers nothing that can be read.
        """
        return self.submit(samples, prompts, torch.zeros(len(samples), dtype=torch.long))()

    def submit(self, samples: Tensor, prompts: Sequence[str], groups: Tensor) -> Callable[[], RewardBatch]:
        """See `flowrl.rl.submit_scores`."""
        del groups
        check_samples(samples, prompts)
        rows = samples.detach().isfinite().flatten(1).all(1).nonzero()[:, 0].tolist()
        pictures = levels(samples).permute(0, 3, 1, 2)
        texts = [self.marks.question.replace("{prompt}", prompts[row]) for row in rows]
        questions = [Question(text=text, pictures=(encode_png(pictures[row]),)) for row, text in zip(rows, texts, strict=True)]
        pending, parts = self.endpoint.ask(questions, self.marks.read), list(self.marks.labels)

        def marked() -> RewardBatch:
            scores = torch.full((len(prompts), len(parts)), torch.nan)
            for row, answer in zip(rows, pending(), strict=True):
                if answer.value is not None:
                    scores[row] = torch.tensor(answer.value)
            return RewardBatch(dict(zip(parts, scores.to(samples.device).unbind(1), strict=True)))

        return marked

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Three photographs, each of which fits its own description; the first mark must see it."""
        first = next(iter(self.marks.labels))
        return [KnownAnswer.matching("photographs", photographs(), PHOTOGRAPHS, part=first, share=0.9)]
