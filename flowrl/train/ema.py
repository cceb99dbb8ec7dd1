"""An exponential moving average of the trained weights, for evaluation and release."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from flowrl.train.parallel import local_shard, shard_of, unsharded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """``average ← decay·average + (1 − decay)·weights`` over the trained parameters, with a context in which the average acts.

    The decay warms up as in diffusers' ``EMAModel``: in the n-th step, n = 0 being the first, it is 0 for n = 0 and then
    ``(1 + n)/(10 + n)`` until that reaches the given one. Each process averages the shards that it holds.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Start from the present weights.

        Args:
            parameters: The trained parameters, always the same ones in the same order; they may be sharded.
            decay: In (0, 1); DanceGRPO uses 0.995, Flow-GRPO 0.9 every 8 updates.

        Raises:
            ValueError: If ``decay`` lies outside (0, 1).
        """
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay must lie inside (0, 1), got {decay}; leave it out to train without an average")
        self._decay = decay
        self._steps = 0
        self._parameters = parameters
        self._average = [local_shard(parameter).clone() for parameter in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Take in the present weights; once per optimiser step."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps)) if self._steps else 0.0
        self._steps += 1
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(local_shard(parameter), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights act inside this context; the trained ones wait on the CPU and come back after it."""
        trained = [local_shard(parameter).to("cpu", copy=True) for parameter in self._parameters]
        self._copy(self._average)
        try:
            yield
        finally:
            self._copy(trained)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint, unsharded; all processes must call it."""
        pairs = zip(self._average, self._parameters, strict=True)
        return {"steps": self._steps, "average": [unsharded(average, parameter) for average, parameter in pairs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint; all processes must call it."""
        self._steps = int(state["steps"])
        pairs = zip(state["average"], self._parameters, strict=True)
        self._average = [shard_of(average, parameter) for average, parameter in pairs]

    @torch.no_grad()
    def _copy(self, values: Sequence[torch.Tensor]) -> None:
        for value, parameter in zip(values, self._parameters, strict=True):
            local_shard(parameter).copy_(value)
