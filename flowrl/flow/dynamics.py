"""Dynamics: from a velocity at time t to the distribution of the state at time s < t.

All are ``x_s = a·x_t + b·v + std·noise``. With the drift coefficient ``c = g²/(2t)`` of the Langevin correction,
``a = 1 + c·dt`` and ``b = (1 + c·(1 − t))·dt`` where ``dt = s − t < 0``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowrl.flow.transition import Transition
from flowrl.shapes import Time, expand_time, float_dtype

__all__ = ["CPS", "ODE", "Ancestral", "DanceSDE", "Dynamics", "FlowSDE", "kept_noise"]


class Dynamics(Protocol):
    """How a step is taken. A new SDE is a new class with this one method."""

    def transition(self, velocity: Tensor, x_t: Tensor, t: Time, s: Time) -> Transition:
        """The distribution of ``x_s`` given ``x_t``.

        Args:
            velocity: ``noise − data`` at ``(x_t, t)``, ``(batch, ...)``.
            x_t: State at ``t``, the same shape.
            t: Noise level now, ``()`` or a prefix of the state's axes.
            s: Noise level to go to, ``0 <= s <= t <= 1``; where ``s == t`` the state stays.

        Raises:
            ValueError: If shapes differ or the times are out of order (checked where they live on the CPU).
        """
        ...


def _prepare(velocity: Tensor, x_t: Tensor, t: Time, s: Time) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check, cast to float32 at least, and broadcast the times."""
    if velocity.shape != x_t.shape:
        raise ValueError(f"velocity and state must have the same shape, got {tuple(velocity.shape)} and {tuple(x_t.shape)}")
    dtype = float_dtype(velocity, x_t)
    x_t = x_t.to(dtype)
    early, late = expand_time(t, x_t).to(dtype), expand_time(s, x_t).to(dtype)
    if not (isinstance(t, Tensor) or isinstance(s, Tensor)):
        _check_order(torch.tensor(t), torch.tensor(s), t, s)
    elif all(not isinstance(time, Tensor) or time.device.type == "cpu" for time in (t, s)):
        _check_order(early, late, t, s)
    return velocity.to(dtype), x_t, early, late


def _check_order(early: Tensor, late: Tensor, t: Time, s: Time) -> None:
    """Refuse times out of order; ``early`` and ``late`` are ``t`` and ``s`` with the state's axes, so that they meet row by row."""
    if not bool(((late >= 0) & (early <= 1) & (late <= early)).all()):  # "not" also refuses NaN
        given = f"t = {torch.as_tensor(t).tolist()}, s = {torch.as_tensor(s).tolist()}"
        raise ValueError(f"times must satisfy 0 <= s <= t <= 1 (1 is noise, 0 is data), got {given}")


def _langevin(velocity: Tensor, x_t: Tensor, t: Tensor, dt: Tensor, c: Tensor, std: Tensor) -> Transition:
    """The Euler–Maruyama step of the SDE with drift coefficient ``c = g²/(2t)`` (Flow-GRPO, arXiv:2505.05470)."""
    return Transition(x_t + dt * velocity + dt * c * (x_t + (1 - t) * velocity), std)


@dataclass(frozen=True, kw_only=True)
class _Stochastic:
    """Dynamics with a noise level."""

    noise_level: float

    def __post_init__(self) -> None:
        if not 0 < self.noise_level < math.inf:  # "not" also refuses NaN
            raise ValueError(f"noise_level must be > 0 and finite, got {self.noise_level}; for noise-free sampling use flowrl.flow.ODE")


@dataclass(frozen=True, kw_only=True)
class ODE:
    """The Euler step ``x_s = x_t + (s − t)·velocity``, noise-free."""

    def transition(self, velocity: Tensor, x_t: Tensor, t: Time, s: Time) -> Transition:
        """See :class:`Dynamics`."""
        velocity, x_t, t, s = _prepare(velocity, x_t, t, s)
        return Transition(x_t + (s - t) * velocity, torch.zeros_like(t))


@dataclass(frozen=True, kw_only=True)
class FlowSDE(_Stochastic):
    """The SDE of Flow-GRPO and G²RPO: ``g = noise_level·sqrt(t/(1 − t))`` (arXiv:2505.05470; arXiv:2510.01982).

    At ``t = 1`` the denominator takes ``s`` in place of ``t``, as in the official code; the first step's std is then
    ``noise_level`` on any grid.

    Attributes:
        noise_level: > 0, dimensionless; the papers use 0.7 (SD3) and 0.9 (FLUX).

    Raises:
        ValueError: If ``noise_level`` is not positive and finite.
    """

    def transition(self, velocity: Tensor, x_t: Tensor, t: Time, s: Time) -> Transition:
        """See :class:`Dynamics`."""
        velocity, x_t, t, s = _prepare(velocity, x_t, t, s)
        remaining = torch.where(torch.isclose(t, torch.ones_like(t), rtol=0, atol=1e-6), 1 - s, 1 - t)
        remaining = torch.where(remaining > 0, remaining, torch.ones_like(t))  # t = s = 1: the state stays, whatever stands here
        c = self.noise_level**2 / (2 * remaining)
        return _langevin(velocity, x_t, t, s - t, c, self.noise_level * (t * (t - s) / remaining).sqrt())


@dataclass(frozen=True, kw_only=True)
class DanceSDE(_Stochastic):
    """The SDE of DanceGRPO, with constant diffusion ``g = noise_level`` (arXiv:2505.07818).

    Attributes:
        noise_level: > 0, dimensionless; the paper uses 0.3.

    Raises:
        ValueError: If ``noise_level`` is not positive and finite.
    """

    def transition(self, velocity: Tensor, x_t: Tensor, t: Time, s: Time) -> Transition:
        """See :class:`Dynamics`."""
        velocity, x_t, t, s = _prepare(velocity, x_t, t, s)
        c = self.noise_level**2 / (2 * torch.where(t > 0, t, torch.ones_like(t)))  # t = s = 0: the state stays
        return _langevin(velocity, x_t, t, s - t, c, self.noise_level * (t - s).sqrt())


@dataclass(frozen=True, kw_only=True)
class CPS(_Stochastic):
    """Coefficients-preserving sampling (Flow-CPS, arXiv:2509.05952): keeps the noise level of the path exactly.

    ``mean = (1 − s)·data + sqrt(s² − std²)·noise`` with ``std = s·sin(noise_level·π/2)``: part of the predicted noise is
    replaced by fresh noise. The step to ``s = 0`` is noise-free, so it cannot be trained.

    Attributes:
        noise_level: In (0, 1], dimensionless; the share of noise replaced. flow_grpo uses 0.8.

    Raises:
        ValueError: If ``noise_level`` lies outside (0, 1].
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_level > 1:
            raise ValueError(f"noise_level of CPS must be at most 1 (all noise is replaced), got {self.noise_level}")

    def transition(self, velocity: Tensor, x_t: Tensor, t: Time, s: Time) -> Transition:
        """See :class:`Dynamics`."""
        velocity, x_t, t, s = _prepare(velocity, x_t, t, s)
        return _replace_noise(velocity, x_t, t, s, s * math.sin(self.noise_level * math.pi / 2))


@dataclass(frozen=True, kw_only=True)
class Ancestral(_Stochastic):
    """The sampler of DDPM at ``noise_level = 1``, of DDIM with ``eta = noise_level`` below it (arXiv:2010.02502, Eq. 16).

    ``mean = (1 − s)·data + sqrt(s² − std²)·noise`` with ``std = noise_level·s·sqrt(1 − q²)`` and ``q = s·(1 − t)/(t·(1 − s))``: the
    noise that a step injects vanishes with its length, so that at ``noise_level = 1`` fine grids give the reverse SDE. The step to
    ``s = 0`` is noise-free, so it cannot be trained.

    Attributes:
        noise_level: In (0, 1], dimensionless.

    Raises:
        ValueError: If ``noise_level`` lies outside (0, 1].
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_level > 1:
            raise ValueError(f"noise_level of Ancestral must be at most 1 (DDPM), got {self.noise_level}")

    def transition(self, velocity: Tensor, x_t: Tensor, t: Time, s: Time) -> Transition:
        """See :class:`Dynamics`."""
        velocity, x_t, t, s = _prepare(velocity, x_t, t, s)
        return _replace_noise(velocity, x_t, t, s, self.noise_level * s * (1 - kept_noise(t, s) ** 2).clamp_min(0).sqrt())


def kept_noise(t: Tensor, s: Tensor) -> Tensor:
    """``q = s·(1 − t)/(t·(1 − s))``, the ratio of the two noise-to-signal ratios of a step, in [0, 1]; 1 where ``s == t``.

    Args:
        t: Noise levels now.
        s: Noise levels to go to, at most ``t``.
    """
    stays = s >= t
    q = s * (1 - t) / (torch.where(stays, torch.ones_like(t), t) * torch.where(stays, torch.ones_like(s), 1 - s))
    return torch.where(stays, torch.ones_like(q), q)


def _replace_noise(velocity: Tensor, x_t: Tensor, t: Tensor, s: Tensor, std: Tensor) -> Transition:
    """Keep the path's coefficients: of the predicted noise, ``std`` is fresh. Where ``s == t`` the state stays."""
    data, noise = x_t - t * velocity, x_t + (1 - t) * velocity
    stays = t == s
    mean = torch.where(stays, x_t, (1 - s) * data + (s**2 - std**2).clamp_min(0).sqrt() * noise)
    return Transition(mean, torch.where(stays, torch.zeros_like(std), std))
