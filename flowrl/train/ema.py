"""An exponential moving average of the trained weights, for evaluation and release."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flowrl.train.parallel import full_tensors, sharded_like

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """diffusers' ``EMAModel`` over the trained parameters, with a context in which the average acts.

    ``average ← decay·average + (1 − decay)·weights``. The decay warms up: in the n-th step, n = 0 being the first, it is 0 for n = 0
    and then ``(1 + n)/(10 + n)`` until that reaches the given one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Start from the present weights.

        Args:
            parameters: The trained parameters, always the same ones in the same order; they may be sharded.
            decay: In (0, 1); DanceGRPO uses 0.995, Flow-GRPO 0.9 every 8 updates.

        Raises:
            ValueError: If ``decay`` lies outside (0, 1).
        """
        from diffusers.training_utils import EMAModel

        if not 0 < decay < 1:
            raise ValueError(f"ema_decay must lie inside (0, 1), got {decay}; leave it out to train without an average")
        self._parameters = parameters
        self._average = EMAModel(parameters, decay=decay)

    def step(self) -> None:
        """Take in the present weights; once per optimiser step."""
        self._average.step(self._parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights act inside this context; the trained ones come back after it."""
        self._average.store(self._parameters)
        self._average.copy_to(self._parameters)
        try:
            yield
        finally:
            self._average.restore(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint, unsharded; all processes must call it."""
        state = dict(self._average.state_dict())
        return state | {"shadow_params": full_tensors(state["shadow_params"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        pairs = zip(state["shadow_params"], self._parameters, strict=True)
        self._average.load_state_dict(state | {"shadow_params": [sharded_like(average, parameter) for average, parameter in pairs]})
