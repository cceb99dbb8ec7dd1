"""A rollout: prompts to trajectories, each process with whole groups."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from flowrl.flow import Condition, Trajectory
from flowrl.shapes import randn, seeded_generator

if TYPE_CHECKING:
    from flowrl.flow import Sampler, VelocityField
    from flowrl.models import ImageModel

__all__ = ["Rollout", "draw", "join"]

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

    def without_samples(self) -> Rollout:
        """The same without the final states, which only the rewards look at."""
        return replace(self, trajectory=replace(self.trajectory, samples=self.trajectory.samples.new_empty(0)))


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


def join(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of several prompts each, one after the other, as one."""
    if len(parts) == 1:
        return parts[0]
    return Rollout(
        prompts=[prompt for part in parts for prompt in part.prompts],
        condition=Condition.cat([part.condition for part in parts]),
        trajectory=Trajectory.cat([part.trajectory for part in parts]),
        seconds=sum(part.seconds for part in parts),
    )
