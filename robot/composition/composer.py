"""General Policy Composition (arXiv:2510.01068): several policies, one denoising loop, no training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.errors import close_match
from robot.composition.check import action_size, check_actions, check_asked_always, warn_of_mismatch
from robot.composition.frame import common_frame
from robot.composition.guidance import Guidance
from robot.composition.loop import BoundComposition, Composed, Loop, distinct_labels
from robot.composition.member import Member, Weight
from robot.composition.operators import OPERATORS
from robot.composition.panel import seat
from robot.composition.stack import Stack
from robot.composition.weights import checked_weights, is_zero

if TYPE_CHECKING:
    from flowrl.flow import Dynamics
    from flowrl.shapes import RandomSource, Time
    from robot.composition.sampling import SamplerName

__all__ = ["Composer"]


@dataclass(frozen=True)
class Composer:
    """Policies of any Gaussian path, prediction kind and normaliser as one sampler of actions, and one velocity field.

    Members are queried at equal signal-to-noise ratio in raw units, so diffusion and flow policies with different normalisers combine
    exactly (see :mod:`robot.composition.frame`). Members of constant weight zero are never called. Steps are of second order
    (DPM-Solver++(2M)), so a policy composed with nothing draws from its law, but not the very numbers of its library's own DDPM or Euler
    loop; for those, see :func:`robot.composition.sample_with_scheduler` and the adapters' ``act``.

    Attributes:
        members: The policies.
        weights: One for each, instead of their own.
        operator: ``convex`` (the paper's), ``and``, ``or`` (SuperDiff), ``fkc`` (geometric mean), ``average`` (of finished actions: the
            baseline to beat). ``fkc`` resamples: with an observation each row keeps one of its 16 particles, without one all rows are one
            population and come out dependent.
        guidance: Terms on the composed velocity, in their order.
        clip: Bound on the composed data: so many normalised units around the middle of any member's range; None for none.
        vmap: Call members of one architecture as one network; needs their conditions to be tensors of one shape, else they are called in
            turn. The same numbers up to rounding.

    Raises:
        ValueError: If the weights are negative or do not sum to one, the operator is unknown, or the members cannot be composed (by it).
    """

    members: Sequence[Member]
    weights: Sequence[Weight] | None = None
    _: KW_ONLY
    operator: str = "convex"
    guidance: Sequence[Guidance] = ()
    clip: float | None = None
    vmap: bool = False

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("a composition needs at least one member")
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ValueError(f"got {len(self.weights)} weights for {len(self.members)} members; give one for each")
        if self.operator not in (*OPERATORS, "average"):
            raise ValueError(f"unknown operator {self.operator!r}{close_match(self.operator, (*OPERATORS, 'average'))}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be > 0 normalised units, got {self.clip}; None does not clip")
        if self.operator == "average" and (self.guidance or any(callable(share) for share in self.shares)):
            raise ValueError("averaging finished actions knows no guidance and no weights that depend on the noise level; use convex")
        if self.operator == "fkc":
            check_asked_always([*self.members, *(term.member for term in self.guidance if term.member is not None)])
        checked_weights(self.shares)
        check_actions(self.members)
        if len(self.members) > 1:
            warn_of_mismatch(self.mismatch())

    @property
    def shares(self) -> tuple[Weight, ...]:
        """The weights in use, one for each member."""
        return tuple(self.weights) if self.weights is not None else tuple(member.weight for member in self.members)

    @cached_property
    def stack(self) -> Stack | None:
        """The members' networks as one, made once; None where they are called in turn."""
        used = [member for member, share in zip(self.members, self.shares, strict=True) if not is_zero(share)]
        return Stack(used) if self.vmap and len(used) > 1 else None

    def mismatch(self) -> dict[str, float]:
        """For each member ``max|log ρ|``: how far its dimensions are from sharing one noise level; 0 is exact, above 0.22 is warned of."""
        dof = action_size(self.members)
        if dof is None:  # all normalisers are one number
            return {member.label: 0.0 for member in self.members}
        reach = max(member.start + (member.horizon or 1) for member in self.members)
        places = seat(self.members, common_frame(self.members, dof), reach)
        return {place.member.label: place.alignment.mismatch for place in places}

    def __call__(self, x_t: Tensor, t: Time, condition: Any) -> Tensor:
        """The composed velocity in the common normaliser's units: a convex composition is a :class:`flowrl.flow.VelocityField`.

        Encoders run at every call; :meth:`bound` runs them once.

        Raises:
            ValueError: If the operator is not ``convex``.
        """
        return self.bound(condition, (len(x_t), x_t.shape[1], x_t.shape[2]))(x_t, t, condition)

    def bound(self, condition: Any, shape: tuple[int, int, int]) -> BoundComposition:
        """The composed field about one observation, which is encoded now, once.

        Args:
            condition: The observation.
            shape: ``(batch, horizon, dof)`` of the states it will be asked about.

        Raises:
            ValueError: If the operator is not ``convex``, whose step is all there is to it.
        """
        if self.operator != "convex":
            raise ValueError(
                f"the operator {self.operator!r} is more than a velocity (it chooses its noise too); draw with Composer.sample"
            )
        return BoundComposition(Loop(self, shape, condition))

    def sample(
        self,
        shape: tuple[int, int, int],
        *,
        steps: int = 50,
        sampler: SamplerName | Dynamics | None = None,
        generator: RandomSource = None,
        condition: Any = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Draw action chunks.

        Args:
            shape: ``(batch, horizon, dof)``.
            steps: Denoising steps.
            sampler: ``ode``, ``sde``, or any dynamics of :mod:`flowrl.flow`; None is ``ode`` where the operator allows it, else ``sde``.
            generator: Source of the noise; a sequence gives each row its own. It does not depend on the weights, so different weights can
                be compared on the same noise.
            condition: The observation; each member's ``encode`` gets it once.
            weights: ``(batch, member)``, for weights that differ between rows.

        Returns:
            ``(batch, horizon, dof)``, physical units.

        Raises:
            ValueError: If the shape does not fit the members, or the operator needs noise and the sampler has none.
            NonFiniteError: If a member predicted a number that is not finite.
        """
        return self.compose(shape, steps=steps, sampler=sampler, generator=generator, condition=condition, weights=weights).actions

    @torch.no_grad()
    def compose(
        self,
        shape: tuple[int, int, int],
        *,
        steps: int = 50,
        sampler: SamplerName | Dynamics | None = None,
        generator: RandomSource = None,
        condition: Any = None,
        weights: Tensor | None = None,
    ) -> Composed:
        """Draw action chunks and say what each member cost and how much they disagreed; see :meth:`sample`."""
        if self.operator == "average":
            return self._average(shape, {"steps": steps, "sampler": sampler, "generator": generator, "condition": condition}, weights)
        return Loop(self, shape, condition, weights).run(steps, sampler, generator)

    def _average(self, shape: tuple[int, int, int], settings: dict[str, Any], weights: Tensor | None) -> Composed:
        """Each member draws a chunk of its own; the finished actions are averaged by weight."""
        loop = Loop(self, shape, None, weights, encode=False)
        labels = distinct_labels(loop.members)
        actions = torch.zeros(())
        latency: dict[str, float] = {}
        evaluations: dict[str, int] = {}
        for label, share, place in zip(labels, loop.weights_at(1.0), loop.seats, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its schedule was warned of when it was made
                alone = replace(place.member, weight=1.0, dims=None, start=0, horizon=None)
            own = (shape[0], place.steps.stop - place.steps.start, len(place.columns) - place.member.private_dims)
            drawn = Composer([alone], clip=self.clip).compose(own, **settings)
            columns = place.columns[: own[2]].to(drawn.actions.device)
            full = drawn.actions.new_zeros(shape)
            full[:, place.steps, columns] = drawn.actions
            actions = actions.to(full) + share[..., : shape[2]].to(full) * full
            latency[label] = drawn.latency_s[place.member.label]
            evaluations[label] = drawn.evaluations[place.member.label]
        return Composed(actions=actions, disagreement=None, latency_s=latency, evaluations=evaluations)
