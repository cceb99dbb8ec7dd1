"""A rollout: prompts to trajectories to pictures to rewards, each process with whole groups."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flowrl.errors import NonFiniteError
from flowrl.flow import Condition, Trajectory
from flowrl.shapes import randn, seeded_generator

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.flow import Sampler, VelocityField
    from flowrl.models import ImageModel
    from flowrl.rl import Reward

__all__ = ["Rollout", "draw", "require_finite", "score"]

_NOISE, _STEPS = 1, 2  # streams of random numbers: initial states, and the steps' noise


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Trajectories of one process's prompts.

    Attributes:
        prompts: One per group.
        condition: Their encoding, one row each.
        trajectory: What the sampler drew.
        seconds: Wall time of encoding and sampling.
    """

    prompts: Sequence[str]
    condition: Condition
    trajectory: Trajectory
    seconds: float


def draw(
    model: ImageModel, field: VelocityField, sampler: Sampler, prompts: Sequence[str], *, slots: Sequence[int], key: tuple[int, int]
) -> Rollout:
    """Roll out whole groups.

    The noise of a prompt depends on the run's seed, the update and the prompt's slot in the update alone, so it is the same
    however many processes share the update, and a resumed run needs no generator state.

    Args:
        model: The adapter.
        field: The policy.
        sampler: The sampler of this update.
        prompts: This process's prompts, one per group.
        slots: Their positions in the whole update.
        key: ``(seed, update)``.
    """
    start = time.perf_counter()
    condition = model.encode(prompts)
    shape = (sampler.noise_rows(), *model.state_shape)
    noise = torch.cat([randn(shape, seeded_generator(*key, _NOISE, slot), device=model.device) for slot in slots])
    with torch.no_grad():
        state = model.initial_state(noise, sampler.initial_time)
        trajectory = sampler.sample(field, state, condition, [seeded_generator(*key, _STEPS, slot) for slot in slots])
    return Rollout(prompts=prompts, condition=condition, trajectory=trajectory, seconds=time.perf_counter() - start)


def score(model: ImageModel, reward: Reward, rollout: Rollout, *, batch: int) -> Tensor:
    """Decode and score every final state, ``batch`` pictures at a time; no picture outlives its batch.

    Returns:
        ``(row, view, granularity, part)`` float32 on the CPU, parts in the order of ``reward.weights``.
    """
    samples = rollout.trajectory.samples
    states = samples.flatten(0, 2)
    per_row = samples.shape[1] * samples.shape[2]
    groups = rollout.trajectory.group.repeat_interleave(per_row).tolist()
    names = list(reward.weights)
    parts = []
    for start in range(0, len(states), batch):
        prompts = [rollout.prompts[group] for group in groups[start : start + batch]]
        with torch.no_grad():
            parts.append(reward(model.decode(states[start : start + batch]), prompts).stack(names).float().cpu())
    return torch.cat(parts).reshape(*samples.shape[:3], len(names))


def require_finite(rewards: Tensor, names: Sequence[str], prompts: Sequence[str]) -> None:
    """Refuse scores that are not numbers.

    Args:
        rewards: ``(row, view, granularity, part)``, prompt-major.
        names: Of the parts.
        prompts: One per group.

    Raises:
        NonFiniteError: If a score is NaN or infinite; names the part, the prompt and the member of the group.
    """
    bad = (~rewards.isfinite()).nonzero()
    if len(bad):
        row, view, granularity, part = bad[0].tolist()
        group, member = divmod(row, len(rewards) // len(prompts))
        raise NonFiniteError(
            f"reward {names[part]!r} is {float(rewards[row, view, granularity, part])} for prompt {prompts[group]!r}, "
            f"member {member} of its group ({len(bad)} of {rewards.numel()} scores in this update)"
        )
