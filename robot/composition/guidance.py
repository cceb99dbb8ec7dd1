"""What can be stacked on a composed velocity: costs on the actions, and an unconditional policy to move away from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robot.composition.member import Member
from robot.normalise import NormStats

__all__ = ["CostGuidance", "Guidance", "GuidanceInput", "UnconditionalGuidance", "smoothness"]


@dataclass(frozen=True)
class GuidanceInput:
    """What guidance sees at a step.

    Attributes:
        x: State, ``(batch, horizon, dims)``.
        t: Noise level, in (0, 1].
        frame: The composition's normaliser, ``(dof,)``; dimensions of the state after ``dof`` are private.
        member_velocity: Velocity of the guidance's own member, ``(batch, horizon, dims)``; None where it has none.
    """

    x: Tensor
    t: float
    frame: NormStats
    member_velocity: Tensor | None = None


class Guidance(Protocol):
    """A term on the composed velocity; terms apply in their order, before clipping."""

    @property
    def member(self) -> Member | None:
        """A policy that it needs the velocity of, if any."""
        ...

    def __call__(self, velocity: Tensor, given: GuidanceInput) -> Tensor:
        """The guided velocity, of the same shape."""
        ...


@dataclass(frozen=True, kw_only=True)
class CostGuidance:
    """Tilts the composition by ``exp(−scale·cost)``: PoCo's behaviour composition (arXiv:2402.02511), classifier guidance.

    The predicted data moves by ``−scale·t²/(t² + (1 − t)²)·∇cost`` in normalised units: the factor is the posterior variance of data of
    unit variance, with which the tilt of N(0, I) by a linear cost is exact. Networks are not differentiated.

    Attributes:
        cost: Actions in physical units ``(batch, horizon, dof)`` to ``(batch,)``, differentiable.
        scale: >= 0, one over the cost's unit.

    Raises:
        ValueError: If the scale is negative.
    """

    cost: Callable[[Tensor], Tensor]
    scale: float

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"scale of a cost must be >= 0, got {self.scale}; turn the cost's sign to seek it")

    @property
    def member(self) -> None:
        """None: a cost needs no policy."""
        return

    def __call__(self, velocity: Tensor, given: GuidanceInput) -> Tensor:
        """See :class:`Guidance`."""
        dof = len(given.frame.scale)
        data = given.x - given.t * velocity
        with torch.enable_grad():
            own = data[..., :dof].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.cost(given.frame.unnormalise(own)).sum(), own)
        t = given.t
        moved = data.clone()
        moved[..., :dof] -= self.scale * t**2 / (t**2 + (1 - t) ** 2) * gradient
        return (given.x - moved) / t


@dataclass(frozen=True, kw_only=True)
class UnconditionalGuidance:
    """``v = v_free + scale·(v − v_free)``: classifier-free guidance (arXiv:2207.12598, Eq. 6) away from an unconditional policy.

    Attributes:
        member: The policy without the condition, or one to move away from.
        scale: >= 0; 1 leaves the composition as it is.

    Raises:
        ValueError: If the scale is negative.
    """

    member: Member
    scale: float

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"guidance scale must be >= 0, got {self.scale}; 1 means no guidance")

    def __call__(self, velocity: Tensor, given: GuidanceInput) -> Tensor:
        """See :class:`Guidance`."""
        if given.member_velocity is None:
            raise ValueError("unconditional guidance needs its member's velocity")
        return given.member_velocity + self.scale * (velocity - given.member_velocity)


def smoothness(actions: Tensor) -> Tensor:
    """Mean squared second difference along the horizon, ``(batch, horizon, dof) -> (batch,)``: a cost for :class:`CostGuidance`."""
    return (actions.diff(n=2, dim=1) ** 2).mean((1, 2))
