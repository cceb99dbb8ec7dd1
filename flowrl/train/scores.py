"""The scores of a rollout: asked for in batches, awaited later, and what happens where there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from flowrl.errors import NonFiniteError, RewardError
from flowrl.rl import RewardBatch, submit_scores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowrl.models import ImageModel
    from flowrl.rl import GroupReward, Reward
    from flowrl.train.rollout import Rollout

__all__ = ["PendingScores", "complete_groups", "refuse_failures", "score", "submit"]


Batch: TypeAlias = tuple[Tensor, Callable[[], RewardBatch] | RewardError]
"""Positions of some pictures among all, and what waits for their scores, or what went wrong."""


@dataclass(frozen=True, kw_only=True)
class PendingScores:
    """Scores that have been asked for.

    Attributes:
        shape: Rows, views, granularities and parts of what comes.
        batches: What was asked for at once.
        names: Of the parts.
    """

    shape: tuple[int, ...]
    batches: Sequence[Batch]
    names: Sequence[str]

    def wait(self) -> tuple[Tensor, list[str]]:
        """The scores, ``(row, view, granularity, part)`` float32 on the CPU, NaN where there is none; and what went wrong, if anything."""
        scores = torch.full((self.shape[0] * self.shape[1] * self.shape[2], self.shape[3]), torch.nan)
        problems = []
        for places, pending in self.batches:
            try:
                if isinstance(pending, RewardError):
                    raise pending
                scores[places] = pending().stack(self.names).float().cpu()
            except RewardError as error:
                problems.append(str(error))
        return scores.reshape(self.shape), problems


@torch.no_grad()
def submit(model: ImageModel, reward: Reward | GroupReward, rollout: Rollout, *, batch: int) -> PendingScores:
    """Decode every final state and hand the pictures to the reward, ``batch`` at a time; only the reward keeps them.

    Pictures that are compared, those of one prompt, view and granularity, follow one another. A reward that compares them gets whole
    groups, one at least, however small the batch.
    """
    samples = rollout.trajectory.samples
    views, granularities = samples.shape[1:3]
    per_row = torch.arange(views * granularities)
    group = (rollout.trajectory.group.cpu()[:, None] * len(per_row) + per_row).flatten()
    states, batches = samples.flatten(0, 2), list[Batch]()
    for places in _batches(group, batch, whole=getattr(reward, "needs_groups", False)):
        prompts = [rollout.prompts[int(number) // len(per_row)] for number in group[places]]
        pictures = model.decode(states[places.to(states.device)])
        try:
            batches.append((places, submit_scores(reward, pictures, prompts, group[places])))
        except RewardError as error:
            batches.append((places, error))
    names = list(reward.weights)
    return PendingScores(shape=(*samples.shape[:3], len(names)), batches=batches, names=names)


def score(model: ImageModel, reward: Reward | GroupReward, rollout: Rollout, *, batch: int) -> Tensor:
    """Decode and score every final state.

    Returns:
        ``(row, view, granularity, part)`` float32 on the CPU, parts in the order of ``reward.weights``.

    Raises:
        RewardError: If the reward failed.
    """
    scores, problems = submit(model, reward, rollout, batch=batch).wait()
    if problems:
        raise RewardError(problems[0])
    return scores


def complete_groups(rewards: Tensor, groups: int) -> Tensor:
    """Which groups have all their scores, ``(group,)`` bool.

    Args:
        rewards: ``(row, view, granularity, part)``, prompt-major.
        groups: How many there are in it.
    """
    return rewards.isfinite().reshape(groups, -1).all(1)


def refuse_failures(
    rewards: Tensor, names: Sequence[str], prompts: Sequence[str], problems: Sequence[str], *, dropping: bool = False
) -> None:
    """Stop where a score is missing.

    Args:
        rewards: ``(row, view, granularity, part)``, prompt-major.
        names: Of the parts.
        prompts: One per group.
        problems: What rewards reported.
        dropping: Whether groups may be dropped, and none is left.

    Raises:
        RewardError: If a reward reported that it failed.
        NonFiniteError: If a score is NaN or infinite; names the part, the prompt and the member of the group.
    """
    bad = (~rewards.isfinite()).nonzero()
    if not len(bad):
        return
    why = "no group has all of its own" if dropping else "on_reward_failure=drop goes on without the groups that are not scored"
    missing = f"{len(bad)} of {rewards.numel()} scores in this update; {why}"
    if problems:
        raise RewardError(f"{problems[0]} ({missing})")
    row, view, granularity, part = bad[0].tolist()
    group, member = divmod(row, len(rewards) // len(prompts))
    raise NonFiniteError(
        f"reward {names[part]!r} is {float(rewards[row, view, granularity, part])} for prompt {prompts[group]!r}, "
        f"member {member} of its group ({missing})"
    )


def _batches(group: Tensor, size: int, *, whole: bool) -> Iterator[Tensor]:
    """Positions of pictures, group after group; no group is cut if it must stay whole."""
    order = torch.argsort(group, stable=True)
    if whole:
        members = int((group == group[0]).sum())
        size = max(size // members, 1) * members
    yield from order.split(size)
