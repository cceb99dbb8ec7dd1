"""Composition through a diffusers scheduler, as the reference code does it: every member on one scheduler's timesteps."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from flowrl.flow import VariancePreserving
from flowrl.shapes import RandomSource, randn

if TYPE_CHECKING:
    from robot.composition.composer import Composer

__all__ = ["sample_with_scheduler"]


@torch.no_grad()
def sample_with_scheduler(
    composer: Composer,
    scheduler: Any,
    shape: tuple[int, int, int],
    *,
    steps: int,
    generator: torch.Generator | None = None,
    condition: Any = None,
) -> Tensor:
    """Draw chunks with the steps, clipping and noise of a diffusers scheduler (DDPM, DDIM, DPM-Solver++ …) on the composed prediction.

    Members of other schedules and flows follow its noise levels exactly. The scheduler is copied: it may keep a history.

    Args:
        composer: A convex composition; what the scheduler clips is the composed data.
        scheduler: With ``alphas_cumprod``, ``set_timesteps`` and ``step``.
        shape: ``(batch, horizon, dof)``.
        steps: Denoising steps.
        generator: Of the first noise and of the scheduler's.
        condition: The observation.

    Returns:
        ``(batch, horizon, dof)``, physical units.

    Raises:
        ValueError: If the scheduler has no ``alphas_cumprod``, or the operator is not ``convex``.
    """
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{type(scheduler).__name__} has no alphas_cumprod; for flow schedulers use Composer.sample")
    field, path = composer.bound(condition, shape), VariancePreserving(scheduler.alphas_cumprod)
    kind = {"v_prediction": "v"}.get(scheduler.config.prediction_type, scheduler.config.prediction_type)
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    x = randn(shape, cast("RandomSource", generator), device=field.device)
    for timestep in own.timesteps:
        t = float(path.times()[int(timestep)])
        velocity = field(path.to_flow(x, timestep), t)
        ends = path.endpoints(velocity, x, timestep, "velocity")
        x = own.step(path.predict(ends, timestep, kind), timestep, x, **_noise(own, generator)).prev_sample
    return field.frame.unnormalise(x)


def _noise(scheduler: Any, generator: torch.Generator | None) -> dict[str, Any]:
    """The generator, for schedulers whose steps take one."""
    import inspect

    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
