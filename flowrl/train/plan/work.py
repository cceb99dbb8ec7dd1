"""Floating-point operations of an update, and bytes on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flowrl.models.options import DTYPES
from flowrl.train.plan.cost import network_calls, passes_without_gradient, rollout_cost
from flowrl.train.plan.inputs import network_inputs
from flowrl.train.plan.memory import FLOAT32, MOMENTS, MemoryPart
from flowrl.train.plan.passes import decoding, evaluating, updating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrl.train.plan.memory import Subject
    from flowrl.train.plan.strategies import Strategy

__all__ = ["Work", "checkpoint_parts", "embedding_bytes", "update_work"]

LATENTS = ("hidden_states", "sample", "x", "timestep", "t", "guidance", "img_ids", "txt_ids", "img_shapes")


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations of one update over all processes, a multiplication and an addition being two.

    Attributes:
        rollout: Of the network, drawing.
        update: Of the network, learning; with checkpointing the second forward pass too.
        decoding: Of the decoder.
        rewards: Of their networks, where these are known.
    """

    rollout: float
    update: float
    decoding: float
    rewards: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.rollout + self.update + self.decoding + self.rewards


def update_work(subject: Subject) -> Work:
    """Count an update's operations."""
    trainer, cost = subject.trainer, rollout_cost(subject.trainer)
    calls = network_calls(subject.source)
    once = evaluating(subject.network, 1).operations
    learning = trainer.update.epochs * updating(subject.network, 1).operations + passes_without_gradient(trainer) * once
    decoder = decoding(subject.decoder, subject.geometry, 1, DTYPES[subject.source.decoder_dtype]).operations
    scored = sum(network.operations_per_picture for network in subject.rewards if network.trained_on)
    return Work(
        rollout=cost.network_evaluations * once,
        update=cost.trained_states * calls * learning,
        decoding=cost.pictures * decoder,
        rewards=cost.pictures * scored,
    )


def checkpoint_parts(subject: Subject, strategy: Strategy) -> Sequence[MemoryPart]:
    """What a checkpoint holds on disk, over all processes."""
    trainer, sizes = subject.trainer, subject.sizes
    trained = sizes.trained * FLOAT32
    saved = trained if subject.source.lora is not None else sizes.total
    averages = 0 if trainer.ema_decay is None else saved + trained
    moments = int(MOMENTS.get(type(trainer.optimizer).__name__, MOMENTS["AdamW"]) * sizes.trained)
    sharded = strategy.weights(sizes) < sizes.total  # accelerate then writes the network itself as well
    parts = [
        MemoryPart(name="weights", size=saved),
        MemoryPart(name="averaged weights", size=averages),
        MemoryPart(name="optimiser", size=moments),
        MemoryPart(name="sharded network", size=sizes.total if sharded else 0),
    ]
    return [part for part in parts if part.size]


def embedding_bytes(subject: Subject) -> int:
    """Of one prompt's embeddings."""
    given = network_inputs(subject.network.part.kind, subject.network.part.config, subject.geometry, 1, subject.network.storage)
    return sum(_bytes(value) for name, value in given.items() if name not in LATENTS)


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list) else 0
