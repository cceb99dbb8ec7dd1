"""How often the network, the decoder and the rewards are called in an update, counted without any of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flowrl.flow import Condition
from flowrl.rl import needs_reference
from flowrl.shapes import seeded_generator

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.flow import Sampler
    from flowrl.shapes import Time
    from flowrl.train.trainer import RLTrainer

__all__ = ["RolloutCost", "largest_call", "network_calls", "rollout_cost"]


@dataclass(frozen=True, kw_only=True)
class RolloutCost:
    """What one update draws, over all processes.

    Attributes:
        network_evaluations: States that the network evaluates in the rollout, guidance counted.
        pictures: Decoded and scored.
        trained_states: States evaluated again in each pass of the update, with a backward pass.
        stored_states: Latents kept from the rollout to the update.
        largest_call: States of one group that the sampler has evaluated together, where ``max_batch`` does not cut them.
    """

    network_evaluations: int
    pictures: int
    trained_states: int
    stored_states: int
    largest_call: int


def rollout_cost(trainer: RLTrainer) -> RolloutCost:
    """Count what one update costs, by drawing one group of numbers from a field that is zero everywhere."""
    sampler: Sampler = trainer.sampler.for_update(0, trainer.seed)
    noise = torch.zeros(sampler.noise_rows(), 1)
    still = _StillField()
    drawn = sampler.sample(still, noise, Condition(rows=1), seeded_generator(0))
    prompts = trainer.prompts_per_update
    pictures = math.prod(drawn.samples.shape[:3])
    return RolloutCost(
        network_evaluations=prompts * drawn.network_evaluations * network_calls(trainer.model),
        pictures=prompts * pictures,
        trained_states=prompts * len(drawn.parents),
        stored_states=prompts * (pictures + len(drawn.parents) + math.prod(drawn.children.shape[:2])),
        largest_call=_unbounded(still.largest, sampler, pictures),
    )


def network_calls(model: object) -> int:
    """States that the network evaluates per state of the sampler: two under classifier-free guidance."""
    return 1 if getattr(model, "guidance_scale", 1.0) == 1 else 2


def largest_call(trainer: RLTrainer, groups: int) -> int:
    """States that the network gets at once in a rollout of so many groups on one process, guidance counted."""
    largest = rollout_cost(trainer).largest_call * max(map(len, trainer.parts(groups)))
    most = getattr(trainer.sampler, "max_batch", None)
    return (min(largest, most) if most else largest) * network_calls(trainer.model)


def passes_without_gradient(trainer: RLTrainer) -> int:
    """How often the update evaluates its states beside the passes that learn."""
    return int(trainer.update.old_log_prob == "recompute") + trainer.update.epochs * int(needs_reference(trainer.objective))


def _unbounded(seen: int, sampler: Sampler, pictures: int) -> int:
    """A sampler that is told ``max_batch`` never shows a larger call; then it could want as many as it draws pictures."""
    return seen if getattr(sampler, "max_batch", None) is None else max(seen, pictures)


class _StillField:
    """Velocity 0 everywhere; remembers the most states it was asked for at once."""

    def __init__(self) -> None:
        self.largest = 0

    def __call__(self, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        del t, condition
        self.largest = max(self.largest, len(x_t))
        return torch.zeros_like(x_t)
