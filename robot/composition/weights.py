"""Shares of a composition: checked, brought to one shape, and renormalised where not every member has a say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robot.composition.panel import Seat

if TYPE_CHECKING:
    from robot.composition.member import Weight

__all__ = ["WeightTable", "checked_rows", "checked_weights", "is_zero"]

_TOLERANCE = 1e-5


def is_zero(weight: Weight) -> bool:
    """Whether a weight is the constant 0: its member is never asked."""
    return not callable(weight) and not bool(torch.as_tensor(weight).any())


def checked_weights(weights: Sequence[Weight], t: float = 1.0) -> list[Tensor]:
    """The weights at one noise level as tensors.

    Args:
        weights: One for each member.
        t: For those that depend on it.

    Raises:
        ValueError: If one is negative or not finite, or they do not sum to one (in every entry, where they are tensors).
    """
    values = [torch.as_tensor(weight(t) if callable(weight) else weight, dtype=torch.float32).cpu() for weight in weights]
    shown = [_rounded(value) for value in values]
    if not all(bool((torch.isfinite(value) & (value >= 0)).all()) for value in values):
        raise ValueError(f"the weights of a composition must be >= 0 and finite, got {shown}; to push away from a policy, use guidance")
    total = sum(torch.broadcast_tensors(*values))
    if not bool(((torch.as_tensor(total) - 1).abs() <= _TOLERANCE).all()):
        raise ValueError(
            f"the weights of a composition must sum to one, got {shown} with sum {_rounded(torch.as_tensor(total))}; "
            "only then do epsilon, sample, v and velocity predictions combine alike: divide each weight by the sum"
        )
    return values


def _rounded(value: Tensor) -> object:
    """For messages: as it was written, not as float32 keeps it."""
    return round(float(value), 6) if value.ndim == 0 else [_rounded(item) for item in value]


def checked_rows(weights: Tensor, batch: int, members: int) -> Tensor:
    """Weights that differ between rows.

    Args:
        weights: ``(batch, member)``.
        batch: Rows of the composition.
        members: Of the composition.

    Raises:
        ValueError: If the shape is another, one is negative or not finite, or a row does not sum to one.
    """
    weights = torch.as_tensor(weights, dtype=torch.float32).cpu()
    if weights.shape != (batch, members):
        raise ValueError(f"weights for each row must be (batch, member) = ({batch}, {members}), got {tuple(weights.shape)}")
    checked_weights(list(weights.T))
    return weights


@dataclass(frozen=True)
class WeightTable:
    """The weights over the composed state ``(batch, horizon, dims)``.

    Where a member has no say, the others share its weight in proportion, so that a tail that one policy alone covers is that
    policy's own.

    Attributes:
        seats: Places of the members.
        covered: Whether the member has a say, ``(member, 1, horizon, dims)``.
        per_row: Weights for each row, ``(batch, member)``, instead of the members' own; None for those.
    """

    seats: Sequence[Seat]
    covered: Tensor
    per_row: Tensor | None = None

    @staticmethod
    def build(seats: Sequence[Seat], shape: tuple[int, int, int], per_row: Tensor | None = None) -> WeightTable:
        """Find who has a say where.

        Args:
            seats: Places of the members.
            shape: ``(horizon, dims, dof)`` of the composed chunk: dimensions with and without private ones.
            per_row: Checked weights ``(batch, member)``, or None.

        Raises:
            ValueError: If nobody has a say about a dimension or a step.
        """
        horizon, dims, dof = shape
        covered = torch.zeros(len(seats), 1, horizon, dims, dtype=torch.bool)
        for index, place in enumerate(seats):
            covered[index, 0, place.steps, place.columns] = True
        holes = (~covered[:, 0, :, :dof].any(0)).nonzero()
        if len(holes):
            raise ValueError(f"no member with weight covers step {int(holes[0, 0])} of dimension {int(holes[0, 1])} of the composed chunk")
        return WeightTable(seats, covered, per_row)

    def at(self, t: float, weights: Sequence[Weight]) -> Tensor:
        """The weights at one noise level, ``(member, batch or 1, horizon, dims)``; they sum to one wherever anybody has a say.

        Args:
            t: Noise level.
            weights: The members' own, used where there are none per row.
        """
        raw = torch.zeros(len(self.seats), 1 if self.per_row is None else len(self.per_row), *self.covered.shape[2:])
        values = checked_weights(weights, t) if self.per_row is None else [column[:, None, None] for column in self.per_row.T]
        dof = raw.shape[-1] - sum(place.member.private_dims for place in self.seats)
        for index, value in enumerate(values):
            raw[index, ..., :dof] = value
            raw[index, ..., dof:] = 1.0  # private dimensions have one owner, whatever its weight
        raw = raw * self.covered
        total = raw.sum(0, keepdim=True)
        return torch.where(total > 0, raw / torch.where(total > 0, total, 1.0), raw)
