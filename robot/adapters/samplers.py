"""The hosts' own sampling loops, around any network: what an adapted policy does when it acts alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from flowrl.flow import VariancePreserving
from robot.composition import Sampling

if TYPE_CHECKING:
    from flowrl.shapes import RandomSource

__all__ = ["Network", "Scheduler", "euler", "run_scheduler", "scheduler_kind", "scheduler_path", "scheduler_sampling"]

Network: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]
"""``(x, time, condition) -> prediction``."""

_KINDS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}


class Scheduler(Protocol):
    """The part of a diffusers scheduler that policies use."""

    config: Any
    alphas_cumprod: Tensor
    timesteps: Tensor

    def set_timesteps(self, steps: int) -> None:
        """Choose the timesteps of a sampling run."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One step of denoising; the result's ``prev_sample`` is the new state."""


def scheduler_path(scheduler: Scheduler) -> VariancePreserving:
    """The path that a diffusers scheduler trains on.

    Raises:
        ValueError: If its schedule reaches zero signal.
    """
    return VariancePreserving(scheduler.alphas_cumprod)


def scheduler_kind(scheduler: Scheduler) -> str:
    """What the network of a diffusers scheduler predicts.

    Raises:
        ValueError: If flowrl does not know it.
    """
    given = scheduler.config.prediction_type
    if given not in _KINDS:
        raise ValueError(f"the scheduler predicts {given!r}; composable are {', '.join(_KINDS)}")
    return _KINDS[given]


def scheduler_sampling(scheduler: Scheduler, steps: int) -> Sampling:
    """The sampling of a diffusers scheduler: DDPM is stochastic, DDIM and the multistep solvers follow the ODE.

    Args:
        scheduler: The host's.
        steps: Denoising steps that the host takes.
    """
    stochastic = "DDPM" in type(scheduler).__name__
    clips = bool(getattr(scheduler.config, "clip_sample", False))
    bound = float(getattr(scheduler.config, "clip_sample_range", 1.0) or 1.0)
    return Sampling(steps=steps, sampler="sde" if stochastic else "ode", clip=bound if clips else None)


def run_scheduler(
    scheduler: Scheduler, network: Network, noise: Tensor, condition: Any, steps: int, generator: RandomSource = None, **step_arguments: Any
) -> Tensor:
    """Denoise as diffusers-based policies do, with a scheduler of its own so that the host's keeps its state.

    Args:
        scheduler: The host's.
        network: Its prediction.
        noise: ``(batch, horizon, dims)``.
        condition: Of the network.
        steps: Denoising steps.
        generator: Of the noise that DDPM adds.
        step_arguments: Further arguments that the host passes to ``scheduler.step``.
    """
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    source = _per_row(generator, len(noise))
    x = noise
    for timestep in own.timesteps:
        time = torch.full((len(x),), int(timestep), dtype=torch.long, device=x.device)
        x = own.step(network(x, time, condition), timestep, x, generator=source, **step_arguments).prev_sample
    return x


def euler(network: Network, noise: Tensor, condition: Any, steps: int) -> Tensor:
    """Denoise as the openpi family does: Euler steps of equal length from noise level 1 to 0.

    Args:
        network: Its velocity, noise − data.
        noise: ``(batch, horizon, dims)``.
        condition: Of the network.
        steps: Euler steps.
    """
    x, dt = noise, -1.0 / steps
    for step in range(steps):
        time = torch.full((len(x),), 1.0 + step * dt, device=x.device)
        x = x + dt * network(x, time, condition)
    return x


def _per_row(generator: RandomSource, rows: int) -> torch.Generator | list[torch.Generator] | None:
    """What diffusers takes: one generator, or one a row."""
    if not isinstance(generator, Sequence):
        return generator
    if not generator or rows % len(generator):
        raise ValueError(f"{rows} rows cannot be split evenly over {len(generator)} generators; give one generator per row")
    return [source for source in generator for _ in range(rows // len(generator))]
