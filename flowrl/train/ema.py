"""An exponential moving average of the trained weights, for evaluation and release."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """diffusers' ``EMAModel`` over the trained parameters, with a context in which the average acts.

    Its decay warms up as ``(1 + n)/(10 + n)`` until it reaches the given one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Start from the present weights.

        Args:
            parameters: The trained parameters, always the same ones in the same order.
            decay: In (0, 1); DanceGRPO uses 0.995, Flow-GRPO 0.9 every 8 updates.

        Raises:
            ValueError: If ``decay`` lies outside (0, 1).
        """
        from diffusers.training_utils import EMAModel  # noqa: PLC0415 - heavy

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
        """For the checkpoint."""
        return dict(self._average.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._average.load_state_dict(state)
        self._average.to(device=self._parameters[0].device)
