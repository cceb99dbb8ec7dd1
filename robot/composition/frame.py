"""One coordinate system for all members: a common normaliser, and the exact change of state and noise level into each member's own.

In raw units a policy's noisy action is ``a + r·scale·ε`` with ``r = t/(1 − t)``: members with other scales see the same state at
another noise level. With ``ρ = scale/scale_i`` and ``shift = (offset − offset_i)/scale_i``,

    t_i = ρ·t/(1 − t + ρ·t)        x_i = (ρ·x + (1 − t)·shift)/(1 − t + ρ·t)

is the member's rectified-flow state, exact for every t in [0, 1] where ρ is the same for all dimensions. Where it is not, the noise
level takes the geometric mean of ρ, and members are combined by their predicted data in raw units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robot.normalise import NormStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robot.composition.member import Member

__all__ = ["Alignment", "align", "common_frame", "data_bounds"]


@dataclass(frozen=True)
class Alignment:
    """How the composition's coordinates become a member's.

    Attributes:
        ratio: ρ of each of the member's dimensions, ``(dims,)``.
        shift: ``(dims,)``.
    """

    ratio: Tensor
    shift: Tensor

    @cached_property
    def common_ratio(self) -> float:
        """Geometric mean of ρ over the dimensions: sets the noise level."""
        return math.exp(float(self.ratio.double().log().mean()))

    @property
    def mismatch(self) -> float:
        """``max |log(ρ_d/ρ)|``: 0 where one noise level is right for all dimensions."""
        logs = self.ratio.double().log()
        return float((logs - logs.mean()).abs().max())

    @cached_property
    def identity(self) -> bool:
        """Whether the member's coordinates are the composition's."""
        return bool((self.ratio == 1).all() and (self.shift == 0).all())

    def time(self, t: float) -> float:
        """The member's noise level at the composition's ``t``."""
        if self.identity:
            return t
        ratio = self.common_ratio
        return ratio * t / (1 - t + ratio * t)

    def composition_time(self, t: Tensor) -> Tensor:
        """The composition's noise level at the member's ``t``: the inverse of :meth:`time`."""
        if self.identity:
            return t
        ratio = self.common_ratio
        return t / (t + ratio * (1 - t))

    def state(self, x: Tensor, t: float) -> Tensor:
        """The member's rectified-flow state, ``(batch, horizon, dims)``."""
        if self.identity:
            return x
        return (self.ratio.to(x) * x + (1 - t) * self.shift.to(x)) / (1 - t + self.common_ratio * t)

    def data(self, data: Tensor) -> Tensor:
        """Data of the member in the composition's units."""
        return data if self.identity else (data - self.shift.to(data)) / self.ratio.to(data)


def align(frame: NormStats, member: NormStats) -> Alignment:
    """From the composition's normaliser, restricted to the member's dimensions, to the member's; each ``(dims,)``."""
    scale = member.scale.double()
    return Alignment((frame.scale.double() / scale).float(), ((frame.offset.double() - member.offset.double()) / scale).float())


def common_frame(members: Sequence[Member], dof: int) -> NormStats:
    """The composition's normaliser ``(dof,)``: for each dimension the geometric mean of its members' scales, the mean of their offsets.

    With one member, or where all agree, it is exactly theirs. It depends neither on the members' order nor on how much weight each has, so
    different weights start from the same noise; a member without any weight has no part in it.
    """
    offset, scale = torch.zeros(dof), torch.ones(dof)
    for dim in range(dof):
        found = [place for member in members if (place := _stats_of(member, dim)) is not None]
        if found:
            offset[dim], scale[dim] = _centre([o for o, _ in found]), math.exp(_centre([math.log(s) for _, s in found]))
            if len({s for _, s in found}) == 1:
                scale[dim] = found[0][1]
    return NormStats(offset, scale)


def data_bounds(members: Sequence[Member], frame: NormStats, clip: float) -> tuple[Tensor, Tensor]:
    """The range of actions that some member could mean, in the composition's units: ``clip`` around the middle of any normaliser.

    Args:
        members: The policies.
        frame: The composition's normaliser, ``(dof,)``.
        clip: Normalised units.

    Returns:
        Lowest and highest, ``(dof,)`` each; with one normaliser exactly ``∓clip``.
    """
    low, high = torch.full_like(frame.scale, -clip), torch.full_like(frame.scale, clip)
    for dim in range(len(frame.scale)):
        found = {place for member in members if (place := _stats_of(member, dim)) is not None}
        if len(found) > 1:
            offset, scale = float(frame.offset[dim]), float(frame.scale[dim])
            low[dim] = min((o - clip * s - offset) / scale for o, s in found)
            high[dim] = max((o + clip * s - offset) / scale for o, s in found)
    return low, high


def _centre(values: list[float]) -> float:
    return values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)


def _stats_of(member: Member, dim: int) -> tuple[float, float] | None:
    """A member's offset and scale of a dimension of the composed action; None where it has no such dimension."""
    if member.dims is not None and dim not in member.dims:
        return None
    offset, scale = torch.as_tensor(member.offset), torch.as_tensor(member.scale)
    own = dim if member.dims is None else member.dims.index(dim)
    return (float(offset), float(scale)) if offset.ndim == 0 else (float(offset[own]), float(scale[own]))
