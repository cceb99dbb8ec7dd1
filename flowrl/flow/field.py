"""Velocity fields, and fields that wrap fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowrl.errors import close_match
from flowrl.flow.condition import Condition
from flowrl.flow.path import PREDICTIONS, AffinePath
from flowrl.shapes import Time, float_dtype

__all__ = ["ClassifierFreeGuidance", "DiffusionField", "VelocityField", "evaluations_per_state"]


class VelocityField(Protocol):
    """``noise − data`` expected at a state: the one thing a sampler asks of a model.

    A field may declare ``evaluations``, the network evaluations that one call costs per state (1 where it does not).
    """

    def __call__(self, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        """The velocity at ``x_t``.

        Args:
            x_t: State, ``(batch, ...)``, float32.
            t: Noise level, ``()`` or a prefix of the state's axes; 1 is noise, 0 is data.
            condition: One row per row of the state.

        Returns:
            float32, the state's shape.
        """
        ...


def evaluations_per_state(field: VelocityField) -> int:
    """Network evaluations that one state costs under this field."""
    return int(getattr(field, "evaluations", 1))


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance:
    """``v = v_neg + scale·(v_cond − v_neg)`` (arXiv:2207.12598, Eq. 6), both halves in one batch.

    Attributes:
        field: The conditional field.
        scale: Guidance scale; 1 is the conditional field (then use it bare: it costs half).
        negative: The unconditional or negative-prompt condition, one row.
        shared: Names in the condition that ``negative`` lacks because both halves have them from the row itself, such as a picture to edit.

    Raises:
        ValueError: If the scale is negative or NaN, or ``negative`` has more than one row.
    """

    field: VelocityField
    scale: float
    negative: Condition
    shared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"guidance scale must be >= 0, got {self.scale}; 1 means no guidance")
        if len(self.negative) != 1:
            raise ValueError(f"the negative condition must have one row, got {len(self.negative)}; it is repeated over the batch")

    @property
    def evaluations(self) -> int:
        """Network evaluations per state: two halves."""
        return 2 * evaluations_per_state(self.field)

    def __call__(self, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        """The guided velocity; see :class:`VelocityField`."""
        both = Condition.cat([self.away_from(condition), condition])
        time = torch.as_tensor(t, device=x_t.device)
        negative, conditional = self.field(torch.cat([x_t, x_t]), torch.cat([time, time]) if time.ndim else time, both).chunk(2)
        return self.combined(negative, conditional)

    def away_from(self, condition: Condition) -> Condition:
        """The negative condition of every row of a condition."""
        own = {name: condition.tensors[name] for name in self.shared}
        return Condition({**self.negative.repeat(len(condition)).tensors, **own}, len(condition))

    def combined(self, negative: Tensor, conditional: Tensor) -> Tensor:
        """The guided velocity of the two halves; other kinds of guidance differ in this formula alone."""
        return negative + self.scale * (conditional - negative)


@dataclass(frozen=True, kw_only=True)
class DiffusionField:
    """A network of any path and prediction kind as a velocity field in rectified-flow coordinates.

    The network is called in its own coordinates: state ``x = x_t·(a + b)`` and its own time (an integer timestep
    for a variance-preserving path). Its velocity needs no further conversion: ``noise − data`` is the same in both.

    Attributes:
        network: ``(x, time, condition) -> prediction``, all in the path's own coordinates.
        path: The path that it was trained on.
        kind: What it predicts, one of :data:`flowrl.flow.PREDICTIONS`.

    Raises:
        ValueError: If the kind is unknown.
    """

    network: Callable[[Tensor, Tensor, Condition], Tensor]
    path: AffinePath
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in PREDICTIONS:
            raise ValueError(f"unknown prediction kind {self.kind!r}{close_match(self.kind, PREDICTIONS)}")

    def __call__(self, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        """The velocity; see :class:`VelocityField`."""
        a, b = self.path.flow_coefficients(t, x_t)
        x = x_t * (a + b)
        prediction = self.network(x, self.path.own_time(t).to(x_t.device), condition)
        return PREDICTIONS[self.kind](prediction.to(float_dtype(prediction)), x, a, b).velocity
