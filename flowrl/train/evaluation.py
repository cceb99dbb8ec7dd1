"""Scoring a model on fixed prompts and noise, so that two models can be compared picture by picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from flowrl.errors import NonFiniteError
from flowrl.flow import Sampler
from flowrl.rl import Reward, submit_scores
from flowrl.shapes import randn, seeded_generator
from flowrl.train.evaluation_result import EvaluationResult
from flowrl.train.grids import film_strip
from flowrl.train.monitors import colour_entropy, edge_density, within_prompt_diversity
from flowrl.train.prompts import load_prompts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from flowrl.models.base import ImageModel

__all__ = ["Evaluation"]

NOISE, STEPS = 0, 1  # streams of random numbers that one image draws from


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Draws the same pictures from any model and scores them.

    Image ``i`` shows prompt ``i mod prompts``; its noise depends on ``seed`` and ``i`` alone, so neither the batch nor the number of
    processes changes it, and a shorter evaluation is a prefix of a longer one.

    Attributes:
        prompts: A prompt file, one prompt a line (``assets/...`` names a bundled one), or the prompts themselves.
        sampler: How pictures are drawn, one per row; an ``ODESampler`` for a deterministic one.
        rewards: What is scored. The first is the reward in training, whose weighted sum stands under the pictures; the others are held out.
        images_per_prompt: Pictures of each prompt; diversity needs at least two.
        seed: Names the noise.
        batch: Most pictures drawn, decoded and scored at once.
        keep: How many pictures the result keeps for the sample grid; of videos a strip of frames each.

    Raises:
        ValueError: If the prompt file is unusable, a number is out of range, the sampler draws groups, two rewards share a part's name,
            or a reward's scale moves with training.
    """

    prompts: str | tuple[str, ...]
    sampler: Sampler
    rewards: tuple[Reward, ...]
    images_per_prompt: int = 4
    seed: int = 0
    batch: int = 64
    keep: int = 20

    def __post_init__(self) -> None:
        for name, low in (("images_per_prompt", 1), ("batch", 1), ("keep", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not self.rewards:
            raise ValueError("an evaluation needs at least one reward, got none; give the trained reward first, then those held out")
        if self.sampler.group_size != 1:
            raise ValueError(
                f"an evaluation draws one image a row, got a sampler of group_size {self.sampler.group_size}; use an ODESampler"
            )
        parts = [part for reward in self.rewards for part in reward.weights]
        if len(set(parts)) < len(parts):
            repeated = sorted({part for part in parts if parts.count(part) > 1})
            raise ValueError(f"two rewards have a part named {', '.join(repeated)}; a part may be scored once")
        if self.images_per_prompt == 1 and any(getattr(reward, "needs_groups", False) for reward in self.rewards):
            raise ValueError(
                "a reward compares the pictures of a prompt, and there is one of each; draw at least two: images_per_prompt of the "
                "evaluation, --images of flowrl sample"
            )
        _refuse_moving_scales(self.rewards)
        if not self.texts:
            raise ValueError("an evaluation needs at least one prompt, got none; list them, or name a prompt file")

    @cached_property
    def texts(self) -> list[str]:
        """The prompts, one each."""
        return load_prompts(self.prompts) if isinstance(self.prompts, str) else list(self.prompts)

    @property
    def images(self) -> int:
        """How many pictures one run draws."""
        return len(self.texts) * self.images_per_prompt

    @torch.no_grad()
    def run(self, model: ImageModel, *, module: nn.Module | None = None, rank: int = 0, processes: int = 1) -> EvaluationResult:
        """Draw and score.

        Args:
            model: What to evaluate, with whatever weights it has now.
            module: The prepared network to call in place of the model's own, as the trainer has it.
            rank: Which share of the prompts to do, ``0 <= rank < processes``.
            processes: Number of shares. All make the same number of network calls; join them with `EvaluationResult.merge`.

        Raises:
            NonFiniteError: If a score is NaN or infinite.
        """
        network = model.module if module is None else module
        training = network.training
        network.eval()
        try:
            blocks = [self.block(model, members, module=module) for members in self._shares(rank, processes)]
        finally:
            network.train(training)
        return EvaluationResult.merge(blocks)

    @torch.no_grad()
    def draw(self, model: ImageModel, prompts: Sequence[str]) -> Tensor:
        """Draw one picture of each prompt and score none: what image ``i`` of an evaluation of these prompts would show.

        Args:
            model: With whatever weights it has now.
            prompts: In place of the evaluation's own; one that is repeated is drawn from other noise each time. At least one.

        Returns:
            Pictures ``(prompt, 3, height, width)`` in [0, 1], of videos a strip of frames each; on the CPU.
        """
        training = model.module.training
        model.module.eval()
        try:
            batches = [self._draw(model, None, index, prompts)[0] for index in batched(range(len(prompts)), self.batch)]
        finally:
            model.module.train(training)
        return torch.stack([film_strip(picture).cpu() for pictures in batches for picture in pictures])

    def blocks(self) -> list[list[int]]:
        """All image numbers in blocks of about ``batch``, whole prompts at a time; they do not depend on the number of processes."""
        return [self._images_of(prompts) for prompts in batched(range(len(self.texts)), self._prompts_at_once)]

    def _shares(self, rank: int, processes: int) -> Iterator[list[int]]:
        """Image numbers of this process, whole prompts at a time, so that no block of pictures is larger than need be."""
        for prompts in batched(self._prompts_of(rank, processes), self._prompts_at_once):
            yield self._images_of(list(dict.fromkeys(prompts)))

    def _prompts_of(self, rank: int, processes: int) -> list[int]:
        """Numbers of a process's prompts; the last round wraps: equal calls everywhere."""
        count = len(self.texts)
        return [(turn * processes + rank) % count for turn in range(-(-count // processes))]

    def texts_of(self, rank: int, processes: int) -> list[str]:
        """The prompts that :meth:`run` draws on one of several processes."""
        return [self.texts[prompt] for prompt in self._prompts_of(rank, processes)]

    @property
    def _prompts_at_once(self) -> int:
        return max(1, self.batch // self.images_per_prompt)

    def _images_of(self, prompts: Sequence[int]) -> list[int]:
        return [member * len(self.texts) + prompt for member in range(self.images_per_prompt) for prompt in prompts]

    @torch.no_grad()
    def block(self, model: ImageModel, index: list[int], *, module: nn.Module | None = None) -> EvaluationResult:
        """Draw and score some images; see :meth:`run`.

        Args:
            model: In evaluation mode.
            index: Numbers of the images, all of each prompt that is in it.
            module: What to call in place of the model's own network.
        """
        chunks = [index[start : start + self.batch] for start in range(0, len(index), self.batch)]
        drawn = [self._draw(model, module, chunk, self.texts) for chunk in chunks]
        pictures = torch.cat([images for images, _ in drawn])
        prompts = [self.texts[image % len(self.texts)] for image in index]
        owner = torch.tensor([image % len(self.texts) for image in index])
        scores, reward = self._score(pictures, prompts, owner)
        diversity = dict(zip(owner.unique().tolist(), within_prompt_diversity(pictures.cpu(), owner), strict=True))
        return EvaluationResult(
            index=torch.tensor(index),
            prompts=[str(prompt) for prompt in prompts],
            scores=scores,
            reward=reward,
            monitors={
                "diversity": torch.stack([diversity[prompt] for prompt in owner.tolist()]),
                "edge_density": edge_density(pictures).cpu(),
                "colour_entropy": colour_entropy(pictures).cpu(),
            },
            images={image: film_strip(pictures[row]).cpu() for row, image in enumerate(index) if image < self.keep},
            network_evaluations=sum(evaluations for _, evaluations in drawn),
        )

    def _draw(self, model: ImageModel, module: nn.Module | None, index: Sequence[int], texts: Sequence[str]) -> tuple[Tensor, int]:
        noise = randn((len(index), *model.state_shape), [seeded_generator(self.seed, NOISE, image) for image in index], device=model.device)
        condition = model.encode([texts[image % len(texts)] for image in index])
        steps = [seeded_generator(self.seed, STEPS, image) for image in index]
        trajectory = self.sampler.sample(model.field(module), model.initial_state(noise, self.sampler.initial_time), condition, steps)
        return model.decode(trajectory.final), trajectory.network_evaluations

    def _score(self, pictures: Tensor, prompts: Sequence[str], owner: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        scores: dict[str, Tensor] = {}
        for reward in self.rewards:
            size = len(prompts) if getattr(reward, "needs_groups", False) else self.batch  # those of a prompt are compared
            rows = [slice(start, start + size) for start in range(0, len(prompts), size)]
            batches = [submit_scores(reward, pictures[part], prompts[part], owner[part])().parts for part in rows]
            scores |= {part: torch.cat([batch[part].detach().cpu().double() for batch in batches]) for part in reward.weights}
        for part, values in scores.items():
            if not values.isfinite().all():
                first = int((~values.isfinite()).nonzero()[0])
                raise NonFiniteError(f"the evaluation's score {part!r} is {values[first].item()} for the prompt {prompts[first]!r}")
        weights = self.rewards[0].weights
        return scores, torch.stack([scores[part] * weight for part, weight in weights.items()]).sum(0)


def batched(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The items in order, ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _refuse_moving_scales(rewards: Sequence[Reward]) -> None:
    for reward in rewards:
        if getattr(reward, "state_dict", dict)():
            raise ValueError(
                f"a {type(reward).__name__} of an evaluation has a scale that moves with training, so that two evaluations cannot be "
                "compared; leave RunningScale out there, or take a FixedScale"
            )
