"""How several velocities become one step: convex mixture, AND, OR, and the Feynman–Kac corrector.

All work on velocities ``v_i`` of the same state in the same coordinates. Scores differ from them by a scale and a shift that members share
(``s_i = −(x + (1 − t)·v_i)/t``), so what depends on differences of scores alone can be computed from differences of velocities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowrl.flow import ODE, Dynamics, Transition, kept_noise
from flowrl.shapes import RandomSource, randn, state_sum
from samplers.solvers import Memory, extrapolated_data

__all__ = ["OPERATORS", "And", "Convex", "FeynmanKac", "Operator", "Or", "Step", "circumcentre"]


@dataclass(frozen=True)
class Step:
    """One denoising step of a composition.

    Attributes:
        velocities: ``(member, batch, horizon, dims)``; where a member has no say, the average of those that have.
        weights: ``(member, batch or 1, horizon, dims)``, sum to one.
        x: State, ``(batch, horizon, dims)``.
        t: Noise level now.
        s: Noise level to go to.
        refine: Guidance and clipping of a composed velocity.
        dynamics: How the step is taken.
        generator: Of its noise.
        dof: Dimensions of the action; those after it are private to one member.
    """

    velocities: Tensor
    weights: Tensor
    x: Tensor
    t: float
    s: float
    refine: Callable[[Tensor], Tensor]
    dynamics: Dynamics
    generator: RandomSource
    dof: int

    def mean_velocity(self) -> Tensor:
        """``Σ w_i v_i`` (GPC, arXiv:2510.01068, Eq. 7)."""
        return (self.weights * self.velocities).sum(0)

    def transition(self, velocity: Tensor) -> Transition:
        """The distribution of the next state under one velocity."""
        return self.dynamics.transition(velocity, self.x, self.t, self.s)

    def disagreement(self) -> Tensor:
        """``½·Σ w_i‖s_i − s‖²·g²`` over this step, nats ``(batch,)``: 0 where all agree. Also the rate of the Feynman–Kac weights."""
        spread = (self.weights * (self.velocities - self.mean_velocity()) ** 2).sum(0)
        share = 1 - float(kept_noise(torch.tensor(self.t, dtype=torch.float64), torch.tensor(self.s, dtype=torch.float64))) ** 2
        return 0.5 * share * (1 - self.t) ** 2 * state_sum(spread)


class Operator(Protocol):
    """A rule for one step; a fresh one for every chunk, as it may remember."""

    needs_noise: bool

    def step(self, step: Step) -> Tensor:
        """The next state, ``(batch, horizon, dims)``."""
        ...

    def finish(self, x: Tensor, generator: RandomSource) -> Tensor:
        """The final states, equally weighted."""
        ...


class _Plain:
    """An operator whose final states need nothing done."""

    def finish(self, x: Tensor, generator: RandomSource) -> Tensor:
        """The states as they are."""
        del generator
        return x


class Convex(_Plain):
    """``v = Σ w_i v_i``, in steps of second order (DPM-Solver++(2M), with or without noise)."""

    needs_noise = False

    def __init__(self) -> None:
        """Start a chunk."""
        self._memory: Memory = ()

    def step(self, step: Step) -> Tensor:
        """See :class:`Operator`."""
        rows = step.x.new_ones(len(step.x))
        velocity = step.refine(step.mean_velocity())
        target, self._memory = extrapolated_data(velocity, step.x, step.t * rows, step.s * rows, self._memory)
        if self._memory and target is not self._memory[0]:
            velocity = (step.x - target) / step.t
        transition = step.transition(velocity)
        return transition.mean if isinstance(step.dynamics, ODE) else transition.sample(step.generator)


class And(_Plain):
    """Equal density under all members: the logical AND of SuperDiff (arXiv:2412.17762, Prop. 6) in closed form.

    All ``log q_i`` grow alike if the drift takes the circumcentre of the scores in their affine hull and the noise has no part along that
    hull: for two members, the midpoint and noise orthogonal to their difference. The weights play no part.
    """

    needs_noise = True

    def step(self, step: Step) -> Tensor:
        """See :class:`Operator`."""
        points = step.velocities.flatten(2).transpose(0, 1)  # (batch, member, entry)
        centre, basis = circumcentre(points)
        transition = step.transition(step.refine(centre.reshape(step.x.shape).to(step.x.dtype)))
        noise = randn(step.x.shape, step.generator, device=step.x.device, dtype=transition.mean.dtype)
        flat = noise.flatten(1).double()
        along = (basis @ (basis.transpose(1, 2) @ flat[..., None]))[..., 0]
        return transition.sample(noise=(flat - along).reshape(noise.shape).to(noise.dtype))


class Or(_Plain):
    """A sample of one member's law or another's: the mixture ``Σ w_i p_i`` (SuperDiff's OR, arXiv:2412.17762, Alg. 1).

    ``κ = softmax(log w + temperature·log q)`` weighs the velocities, where ``log q_i`` is how well member i's own step explains the path
    so far: the log-ratio of its transition densities, which tends to SuperDiff's Itô estimate as steps shrink. With exact
    densities the velocity is the mixture's. Estimates are rough at few steps (<= 100).

    Attributes:
        temperature: > 0; 1 is the mixture, more decides harder.
    """

    needs_noise = True

    def __init__(self, temperature: float = 1.0) -> None:
        """Start a chunk.

        Raises:
            ValueError: If the temperature is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}; 1 is the exact mixture")
        self.temperature = temperature
        self._log_density: Tensor | None = None

    def step(self, step: Step) -> Tensor:
        """See :class:`Operator`."""
        prior = step.weights[..., : step.dof].flatten(2).mean(-1)  # (member, batch or 1)
        density = prior.new_zeros(len(step.velocities), len(step.x)) if self._log_density is None else self._log_density
        kappa = torch.softmax(prior.log() + self.temperature * density, 0)
        mixed = (kappa[:, :, None, None].to(step.x) * step.velocities).sum(0)
        x_s = step.transition(step.refine(mixed)).sample(step.generator)
        if step.s > 0:
            self._log_density = density + self._explained(step, x_s)
        return x_s

    @staticmethod
    def _explained(step: Step, x_s: Tensor) -> Tensor:
        """Log-density of the step taken under each member's own transition, ``(member, batch)``, up to a constant."""
        return torch.stack([step.transition(velocity).log_prob(x_s, reduction="sum") for velocity in step.velocities])


class FeynmanKac:
    """The convex mixture with weights and resampling, so that the result is the geometric mean ``Π p_i^{w_i}`` (arXiv:2503.02819).

    The reverse SDE of a mixture of scores does not end at the product of the laws. Rows carry ``d log W = −½Σ w_i‖s_i − s‖²·g²`` and are
    resampled within their population when its effective size falls below ``threshold`` of it.

    Attributes:
        particles: Rows of a population, consecutive, of which one is kept at the end; None makes the whole batch one and keeps all.
        threshold: In [0, 1].
    """

    needs_noise = True

    def __init__(self, particles: int | None = None, threshold: float = 0.5) -> None:
        """Start a chunk.

        Raises:
            ValueError: If a number is out of range.
        """
        if (particles is not None and particles < 1) or not 0 <= threshold <= 1:
            raise ValueError(f"need particles >= 1 (or None) and threshold in [0, 1], got {particles} and {threshold}")
        self.particles, self.threshold = particles, threshold
        self._log_weight: Tensor | None = None

    def step(self, step: Step) -> Tensor:
        """See :class:`Operator`."""
        if self._log_weight is None:
            self._log_weight = (
                step.x.new_zeros(len(step.x) // (self.particles or len(step.x)), self.particles or len(step.x)).double().cpu()
            )
        x_s = step.transition(step.refine(step.mean_velocity())).sample(step.generator)
        self._log_weight = self._log_weight - step.disagreement().double().cpu().reshape(self._log_weight.shape)
        share = torch.softmax(self._log_weight, 1)
        thin = 1 / (share**2).sum(1) < self.threshold * share.shape[1]
        return self._resampled(x_s, thin, step.generator) if bool(thin.any()) else x_s

    def finish(self, x: Tensor, generator: RandomSource) -> Tensor:
        """One row of each population, drawn by weight; of the one population that is the whole batch, all rows resampled."""
        if self._log_weight is None:
            return x
        if self.particles is None:
            return self._resampled(x, torch.ones(1, dtype=torch.bool), generator)
        groups, size = self._log_weight.shape
        chosen = self._positions(_uniform(generator, groups)[:, None])[:, 0]
        return x[(chosen + size * torch.arange(groups)).to(x.device)]

    def _positions(self, levels: Tensor) -> Tensor:
        """Which row of its population stands at each level of the cumulated weights, ``(population, level)``."""
        if self._log_weight is None:
            raise ValueError("no step was taken yet")
        share = torch.softmax(self._log_weight, 1)
        return torch.searchsorted(share.cumsum(1), levels.to(share)).clamp_max(share.shape[1] - 1)

    def _resampled(self, x: Tensor, which: Tensor, generator: RandomSource) -> Tensor:
        """Systematic resampling of the given populations; their weights start again."""
        if self._log_weight is None:
            return x
        groups, size = self._log_weight.shape
        chosen = self._positions((torch.arange(size, dtype=torch.float64) + _uniform(generator, groups)[:, None]) / size)
        chosen = torch.where(which[:, None], chosen, torch.arange(size)) + size * torch.arange(groups)[:, None]
        self._log_weight = torch.where(which[:, None], 0.0, self._log_weight)
        return x[chosen.flatten().to(x.device)]


def _uniform(generator: RandomSource, groups: int) -> Tensor:
    """One number in (0, 1) for each population, ``(population,)`` float64 on the CPU, whatever the number of generators."""
    single = generator is None or isinstance(generator, torch.Generator) or len(generator) == groups
    normal = randn((groups,), generator if single else generator[0], device="cpu", dtype=torch.float64)  # type: ignore[index]
    return torch.special.ndtr(normal)


def circumcentre(points: Tensor) -> tuple[Tensor, Tensor]:
    """The point of the affine hull that is equally far from all points, and the directions of the hull.

    Args:
        points: ``(batch, member, entry)``.

    Returns:
        The centre ``(batch, entry)`` and an orthonormal basis of the hull's directions ``(batch, entry, member − 1)``, float64; directions
        in which the points coincide are left out (zero columns).
    """
    points = points.double()
    edges = points[:, 1:] - points[:, :1]  # (batch, member - 1, entry)
    u, size, vh = torch.linalg.svd(edges, full_matrices=False)
    kept = size > 1e-9 * size.amax(-1, keepdim=True).clamp_min(1e-30)
    basis = vh.transpose(1, 2) * kept[:, None]
    # ‖c − p_i‖² = ‖c − p_1‖²  <=>  edges·(c − p_1) = ½‖edges‖²
    half = 0.5 * (edges**2).sum(-1)
    inverse = torch.where(kept, 1 / torch.where(kept, size, 1.0), 0.0)
    coordinates = inverse * (u.transpose(1, 2) @ half[..., None])[..., 0]
    return points[:, 0] + (basis @ coordinates[..., None])[..., 0], basis


OPERATORS: dict[str, Callable[[], Operator]] = {"convex": Convex, "and": And, "or": Or, "fkc": FeynmanKac}
"""Operators by the names that ``Composer`` takes."""
