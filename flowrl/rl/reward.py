"""What a reward is: named parts, one number a sample each, and the weights that sum them."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from flowrl.errors import close_match

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "GroupReward",
    "Reward",
    "RewardBatch",
    "check_prompts",
    "check_ready",
    "inner_rewards",
    "load_reward",
    "part_weights",
    "prepare_reward",
    "submit_scores",
    "with_those_within",
]


@dataclass(frozen=True)
class RewardBatch:
    """The scores of one batch of samples.

    Attributes:
        parts: Name of a part to its scores, (batch,) each, in that part's own unit.

    Raises:
        ValueError: If there are no parts, or a part is not (batch,) with the same batch as the others.
    """

    parts: dict[str, Tensor]

    def __post_init__(self) -> None:
        shapes = {name: tuple(part.shape) for name, part in self.parts.items()}
        if not shapes:
            raise ValueError("a reward batch needs at least one part, got none; return {'name': scores of shape (batch,)}")
        if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
            raise ValueError(f"every reward part must have the shape (batch,), the same for all, got {shapes}")

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.parts.values())))

    def stack(self, names: Sequence[str]) -> Tensor:
        """Return the named parts side by side, (batch, part), in the order of ``names``.

        Raises:
            ValueError: If a name is not among the parts.
        """
        for name in names:
            if name not in self.parts:
                raise ValueError(f"the reward has no part {name!r}{close_match(name, self.parts)}")
        return torch.stack([self.parts[name] for name in names], dim=-1)

    @staticmethod
    def cat(batches: Sequence[RewardBatch]) -> RewardBatch:
        """Join batches that have the same parts, along the samples."""
        return RewardBatch({name: torch.cat([batch.parts[name] for batch in batches]) for name in batches[0].parts})


class Reward(Protocol):
    """Scores pictures against prompts; ``flowrl.testing.check_reward`` checks an implementation.

    Attributes:
        weights: Name of a part to its weight in the sum that is trained; the order is the order of the parts.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """Name of a part to its weight."""
        ...

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score samples.

        Args:
            samples: Pictures (batch, 3, height, width), float, in [0, 1]; left unchanged.
            prompts: The text of each sample, ``batch`` of them.

        Returns:
            The parts, with exactly the names of ``weights``. A row's score depends on that row only. A row that could not be scored is NaN,
            never a made-up number.

        Raises:
            RewardError: If nothing could be scored: a server that is gone, an answer that makes no sense.
        """
        ...


class GroupReward(Protocol):
    """Scores pictures by comparing those of one group: pairwise wins, ranks, diversity.

    It says so by ``needs_groups = True`` and is then given whole groups.
    """

    needs_groups: bool

    @property
    def weights(self) -> Mapping[str, float]:
        """Name of a part to its weight."""
        ...

    def __call__(self, samples: Tensor, prompts: Sequence[str], groups: Tensor) -> RewardBatch:
        """Score samples; see :class:`Reward`.

        Args:
            samples: Pictures (batch, 3, height, width), float, in [0, 1]; left unchanged.
            prompts: The text of each sample; the same within a group.
            groups: (batch,) integer; samples of the same number are compared with each other, and all of a group are in the batch.
        """
        ...


def check_ready(reward: Reward | GroupReward) -> None:
    """Have a reward that can be out of reach, such as one on a server, say so before anything heavy is loaded.

    Args:
        reward: Asked by its method ``check()``, if it has one; else the rewards within it are.

    Raises:
        RewardError: If it cannot score.
    """
    if (check := getattr(reward, "check", None)) is not None:
        check()
        return
    for part in inner_rewards(reward):
        check_ready(cast("Reward", part))


def load_reward(reward: Reward | GroupReward, device: torch.device | str) -> None:
    """Have rewards with weights read them, so that what is missing shows before a rollout, not after.

    Args:
        reward: Asked by its method ``load(device)``, if it has one; so are the rewards within it.
        device: Where the samples will be.

    Raises:
        RewardError: If weights are missing or do not fit.
    """
    for part in with_those_within(reward):
        if (load := getattr(part, "load", None)) is not None:
            load(device)


def check_prompts(reward: object, prompts: Sequence[str]) -> None:
    """Have rewards, or models, that need more of a prompt than its words, or certain words, say so before a rollout.

    Args:
        reward: Or a model's source. Asked by its method ``check_prompts(prompts)``, if it has one; so are the rewards within it.
        prompts: All that it will be asked to score or to draw.

    Raises:
        ValueError: If a prompt cannot be scored.
    """
    for part in with_those_within(reward):
        if (check := getattr(part, "check_prompts", None)) is not None:
            check(prompts)


def prepare_reward(reward: Reward | GroupReward, prompts: Sequence[str], device: torch.device | str) -> None:
    """All that can go wrong with a reward before the first picture: prompts that it cannot score, servers, weights.

    Args:
        reward: What will score.
        prompts: All that it will be asked to score.
        device: Where the samples will be.

    Raises:
        ValueError: If a prompt cannot be scored.
        RewardError: If it cannot score, or weights are missing.
    """
    check_prompts(reward, prompts)
    check_ready(reward)
    load_reward(reward, device)


def with_those_within(reward: object) -> Iterator[object]:
    """A reward, and all that it holds: see :func:`inner_rewards`."""
    yield reward
    for part in inner_rewards(reward):
        yield from with_those_within(part)


def inner_rewards(reward: object) -> Iterator[object]:
    """The rewards among the fields of a dataclass; of another object those in ``rewards`` and ``reward``."""
    names = [field.name for field in fields(reward)] if is_dataclass(reward) and not isinstance(reward, type) else ("rewards", "reward")
    for value in (getattr(reward, name, None) for name in names):
        for item in value if isinstance(value, list | tuple) else (value,):
            if callable(item) and hasattr(item, "weights"):
                yield item


def submit_scores(reward: Reward | GroupReward, samples: Tensor, prompts: Sequence[str], groups: Tensor) -> Callable[[], RewardBatch]:
    """Start scoring; what comes back waits for the scores, and raises what scoring raised.

    A reward with a method ``submit(samples, prompts, groups)`` of the same kind, such as one on a server, works meanwhile; any other has
    done its work when this returns.

    Args:
        reward: What scores.
        samples: Pictures (batch, 3, height, width).
        prompts: One per sample.
        groups: (batch,) integer, the same for samples that are compared; only used by a :class:`GroupReward`.
    """
    if (submit := getattr(reward, "submit", None)) is not None:
        return cast("Callable[[], RewardBatch]", submit(samples, prompts, groups))
    if getattr(reward, "needs_groups", False):
        scores = cast("GroupReward", reward)(samples, prompts, groups)
    else:
        scores = cast("Reward", reward)(samples, prompts)
    return lambda: scores


def part_weights(reward: Reward) -> torch.Tensor:
    """Return a reward's weights as numbers, (part,) float32 on the CPU, in the order of the parts."""
    return torch.tensor([float(weight) for weight in reward.weights.values()])
