"""The denoising loop of a composition, bound to one observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.shapes import RandomSource, Time, randn
from robot.composition.check import check_sizes
from robot.composition.clock import Clock
from robot.composition.frame import common_frame, data_bounds
from robot.composition.grid import composition_times
from robot.composition.guidance import GuidanceInput
from robot.composition.operators import OPERATORS, FeynmanKac, Operator, Step
from robot.composition.panel import Panel, seat
from robot.composition.rows import device_of, take_rows
from robot.composition.sampling import SamplerName, dynamics_of
from robot.composition.weights import WeightTable, checked_rows, is_zero

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrl.flow import Dynamics
    from robot.composition.composer import Composer
    from robot.composition.member import Member
    from robot.normalise import NormStats

__all__ = ["BoundComposition", "Composed", "Loop", "distinct_labels"]

_PARTICLES = 16  # of the Feynman-Kac corrector, for each row of an observation


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A drawn chunk and what was seen on the way.

    Attributes:
        actions: ``(batch, horizon, dof)``, physical units.
        disagreement: ``(batch,)``, nats: ``½∫Σ w_i‖s_i − s‖²·g²``, 0 where all members agree; rises where one is lost. None where finished
            actions were averaged.
        latency_s: Seconds spent in each member's encoder and network.
        evaluations: Rows that each member's network was asked about, summed over the steps.
    """

    actions: Tensor
    disagreement: Tensor | None
    latency_s: Mapping[str, float]
    evaluations: Mapping[str, int]


class Loop:
    """Members with weight, seated, bound to an observation."""

    def __init__(
        self, composer: Composer, shape: tuple[int, int, int], condition: Any, weights: Tensor | None = None, *, encode: bool = True
    ) -> None:
        """Choose who takes part and encode the observation, once.

        Args:
            composer: The composition.
            shape: ``(batch, horizon, dof)``.
            condition: The observation.
            weights: ``(batch, member)`` for weights that differ between rows.
            encode: Whether members' encoders run; not where only places and weights are of interest.
        """
        if len(shape) != 3 or min(shape) < 1:  # noqa: PLR2004 - (batch, horizon, dof)
            raise ValueError(f"a chunk has shape (batch, horizon, dof), each at least 1, got {tuple(shape)}")
        self.composer, (self.batch, self.horizon, self.dof) = composer, shape
        rows = None if weights is None else checked_rows(weights, self.batch, len(composer.members))
        used = [k for k, share in enumerate(composer.shares) if not (is_zero(share) if rows is None else is_zero(rows[:, k]))]
        self.members = [composer.members[k] for k in used]
        self._shares = [composer.shares[k] for k in used]
        check_sizes(self.members, self.dof)
        self.frame = common_frame(self.members, self.dof)
        extra = [term.member for term in composer.guidance if term.member is not None]
        seats = seat([*self.members, *extra], self.frame, self.horizon)
        self.seats = seats[: len(self.members)]
        self.dims = self.dof + sum(place.member.private_dims for place in seats)
        self._particles = _PARTICLES if composer.operator == "fkc" and condition is not None else 1
        per_row = None if rows is None else rows[:, used].repeat_interleave(self._particles, 0)
        self._table = WeightTable.build(self.seats, (self.horizon, self.dims, self.dof), per_row)
        constant = per_row is not None or not any(callable(share) for share in self._shares)
        self._constant = self._table.at(1.0, self._shares) if constant else None
        self._everybody = self._constant is not None and bool((self._constant > 0).all())
        self._bounds = None if composer.clip is None else data_bounds(self.members, self.frame, composer.clip)
        self.device = device_of(condition)
        if encode:
            clock = Clock()
            self._conditions = [_encoded(place.member, condition, clock, index) for index, place in enumerate(seats)]
            self._encoding = clock.seconds(len(seats))
            self.device = next((device for c in self._conditions if (device := device_of(c)) is not None), self.device)
            self._asked = [_asked(per_row, k) for k in range(len(self.members))] + [None] * len(extra)
            self._seats_all = seats
            self.panel = self.panel_of(None)

    def panel_of(self, rows: Tensor | None) -> Panel:
        """The members bound to the observation, or to some rows of it, each row repeated for its particles."""
        chosen = torch.arange(self.batch).repeat_interleave(self._particles) if rows is None else rows
        same = rows is None and self._particles == 1
        conditions = [c if same else take_rows(c, chosen) for c in self._conditions]
        return Panel(self._seats_all, conditions, self._asked, self.composer.stack if len(self._seats_all) == len(self.members) else None)

    def _move(self, device: torch.device) -> None:
        """Bring what every step needs to where the states are, once."""
        if self._constant is not None:
            self._constant = self._constant.to(device)
        if self._bounds is not None:
            self._bounds = (self._bounds[0].to(device), self._bounds[1].to(device))

    def weights_at(self, t: float) -> Tensor:
        """``(member, batch or 1, horizon, dims)`` at one noise level."""
        return self._table.at(t, self._shares) if self._constant is None else self._constant

    @torch.no_grad()
    def run(self, steps: int, sampler: SamplerName | Dynamics | None, generator: RandomSource) -> Composed:
        """Draw a chunk for every row."""
        operator = self._operator()
        dynamics = dynamics_of(sampler, needs_noise=operator.needs_noise)
        times = composition_times(self._seats_all, steps)
        device = self.device or (generator.device if isinstance(generator, torch.Generator) else torch.device("cpu"))
        self._move(device)
        rows = self.batch * self._particles
        # N(0, I) in the coordinates of a variance-preserving path at the first noise level; a pure flow starts at 1, where the factor is 1.
        x = self._noise(rows, generator, device) * (times[0] ** 2 + (1 - times[0]) ** 2) ** 0.5
        disagreement = x.new_zeros(rows)
        for number, (t, s) in enumerate(pairwise(times)):
            step = self.step(self.panel, x, (t, s), number, dynamics, generator)
            disagreement += step.disagreement()
            x = operator.step(step)
        x = operator.finish(x, generator)
        self.panel.check_finite()
        return self._composed(x, disagreement.reshape(self.batch, -1).mean(1))

    def _noise(self, rows: int, generator: RandomSource, device: torch.device) -> Tensor:
        """Of the action first, then of private dimensions, so that a padded policy of weight zero changes nothing for the others."""
        widths = [width for width in (self.dof, self.dims - self.dof) if width]
        return torch.cat([randn((rows, self.horizon, width), generator, device=device) for width in widths], -1)

    def step(self, panel: Panel, x: Tensor, times: tuple[float, float], number: int, dynamics: Dynamics, generator: RandomSource) -> Step:
        """Ask every member about a state."""
        t, s = times
        velocities = panel.velocities(x, t, number)
        own, extra = velocities[: len(self.members)], velocities[len(self.members) :]
        weights = self.weights_at(t).to(x)
        if not self._everybody:
            own = torch.where(weights > 0, own, (weights * own).sum(0, keepdim=True))
        return Step(own, weights, x, t, s, lambda v: self._refined(v, x, t, extra), dynamics, generator, self.dof)

    def _refined(self, velocity: Tensor, x: Tensor, t: float, extra: Tensor) -> Tensor:
        """Guidance, then clipping."""
        others = iter(extra)
        for term in self.composer.guidance:
            seen = None if term.member is None else next(others)
            velocity = term(velocity, GuidanceInput(x, t, self.frame, seen))
        if self._bounds is None:
            return velocity
        low, high = (bound.to(x) for bound in self._bounds)
        data = x - t * velocity
        clipped = torch.cat([data[..., : self.dof].clamp(low, high), data[..., self.dof :]], -1)
        return torch.where(clipped == data, velocity, (x - clipped) / t)

    def _operator(self) -> Operator:
        if self.composer.operator == "fkc":
            return FeynmanKac(particles=self._particles if self._particles > 1 else None)
        return OPERATORS[self.composer.operator]()

    def _composed(self, x: Tensor, disagreement: Tensor) -> Composed:
        panel, names = self.panel, distinct_labels([place.member for place in self._seats_all])
        return Composed(
            actions=self.frame.unnormalise(x[..., : self.dof]),
            disagreement=disagreement,
            latency_s=dict(zip(names, map(sum, zip(self._encoding, panel.seconds(), strict=True)), strict=True)),
            evaluations=dict(zip(names, panel.evaluations, strict=True)),
        )


class BoundComposition:
    """A convex composition about one observation as a :class:`flowrl.flow.VelocityField`, in the common normaliser's units."""

    def __init__(self, loop: Loop) -> None:
        """Wrap a loop, whose encoders have run."""
        self._loop = loop

    @property
    def evaluations(self) -> int:
        """Network evaluations per state."""
        return len(self._loop.members)

    @property
    def device(self) -> torch.device:
        """Where the observation lives."""
        return self._loop.device or torch.device("cpu")

    @property
    def frame(self) -> NormStats:
        """The common normaliser, ``(dof,)``: ``raw = offset + scale·x``."""
        return self._loop.frame

    def __call__(self, x_t: Tensor, t: Time, condition: Any = None) -> Tensor:
        """The velocity at ``(batch, horizon, dof)``; ``t`` is ``()`` or ``(batch,)``. The observation is the bound one."""
        del condition
        times = torch.as_tensor(t, dtype=torch.float64).expand(len(x_t)) if torch.as_tensor(t).ndim == 0 else torch.as_tensor(t)
        result = torch.empty_like(x_t)
        for time in times.unique().tolist():
            rows = (times == time).nonzero()[:, 0].cpu()
            panel = self._loop.panel if len(rows) == len(x_t) else self._loop.panel_of(rows)
            result[rows] = self._velocity(panel, x_t[rows], time)
        return result

    def _velocity(self, panel: Panel, x: Tensor, t: float) -> Tensor:
        step = self._loop.step(panel, x, (t, 0.0), 0, dynamics_of("ode", needs_noise=False), None)
        return step.refine(step.mean_velocity())


def distinct_labels(members: Sequence[Member]) -> list[str]:
    """A name for each member, numbered where several share one."""
    labels = [member.label for member in members]
    return [label if labels.count(label) == 1 else f"{label} {index + 1}" for index, label in enumerate(labels)]


def _encoded(member: Member, condition: Any, clock: Clock, index: int) -> Any:
    if member.encode is None:
        return condition
    started = clock.now(condition)
    encoded = member.encode(condition)
    clock.add(index, started, clock.now(encoded))
    return encoded


def _asked(per_row: Tensor | None, member: int) -> Tensor | None:
    """Rows in which a member has weight; None for all."""
    if per_row is None or bool((per_row[:, member] > 0).all()):
        return None
    return (per_row[:, member] > 0).nonzero()[:, 0]
