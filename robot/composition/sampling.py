"""How chunks are drawn: the settings that stand in a config and inside a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from flowrl.errors import close_match
from flowrl.flow import ODE, Ancestral, Dynamics

__all__ = ["SamplerName", "Sampling", "dynamics_of"]

SamplerName: TypeAlias = Literal["ode", "sde"]
_DYNAMICS: dict[str, Dynamics] = {"ode": ODE(), "sde": Ancestral(noise_level=1.0)}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How chunks are drawn.

    Attributes:
        steps: Denoising steps, at least 1.
        sampler: ``ode`` (deterministic given its first noise) or ``sde`` (the reverse SDE: DDPM's sampler).
        clip: Bound on the predicted data, normalised units; None for none.

    Raises:
        ValueError: If a number is out of range or the sampler is unknown.
    """

    steps: int = 10
    sampler: SamplerName = "ode"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.clip is not None and not self.clip > 0):
            raise ValueError(f"sampling needs steps >= 1 and clip > 0 (or none), got steps={self.steps} and clip={self.clip}")
        dynamics_of(self.sampler, needs_noise=False)


def dynamics_of(sampler: SamplerName | Dynamics | None, *, needs_noise: bool) -> Dynamics:
    """The dynamics that a sampler's name stands for.

    Args:
        sampler: A name, dynamics, or None for the ODE where no noise is needed, else the reverse SDE.
        needs_noise: Whether the operator chooses its noise.

    Raises:
        ValueError: If the name is unknown, or noise is needed and the sampler has none.
    """
    if sampler is None:
        return _DYNAMICS["sde" if needs_noise else "ode"]
    if isinstance(sampler, str) and sampler not in _DYNAMICS:
        raise ValueError(f"unknown sampler {sampler!r}{close_match(sampler, _DYNAMICS)}")
    dynamics = _DYNAMICS[sampler] if isinstance(sampler, str) else sampler
    if needs_noise and isinstance(dynamics, ODE):
        raise ValueError("the operators and, or and fkc are defined on the reverse SDE: use sampler='sde' (or leave it out)")
    return dynamics
