"""What Stable Diffusion 1.5 and XL share: UNets of the variance-preserving path, as velocity fields of the rectified flow."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from flowrl.errors import CheckpointError, close_match
from flowrl.flow import DiffusionField, VariancePreserving
from flowrl.models.pipeline import DiffusersModel
from flowrl.models.source import DiffusersSource

if TYPE_CHECKING:
    from flowrl.flow import Condition
    from flowrl.shapes import Time

__all__ = ["DiffusionModel", "DiffusionSource"]

KINDS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
"""What diffusers calls a network's prediction, to :data:`flowrl.flow.PREDICTIONS`."""

SMALLEST_ALPHA_BAR = 2.0**-24
"""In place of the 0 at which a schedule of zero terminal SNR (arXiv:2305.08891) ends; diffusers' Euler scheduler takes the same."""


class DiffusionModel(DiffusersModel):
    """A UNet that was trained as a diffusion model, in the coordinates of the rectified flow.

    States, times and velocities are those of the flow (:class:`flowrl.flow.DiffusionField` converts them exactly); the network sees its
    own state and the nearest of its integer timesteps. ᾱ and the kind of prediction come from the scheduler's configuration,
    whatever its class. One Euler step in these coordinates is one DDIM step with eta 0 (arXiv:2010.02502, Eq. 12).
    """

    def __init__(self, source: DiffusersSource, pipeline: Any, device: torch.device) -> None:
        """See :class:`DiffusersModel`.

        Raises:
            CheckpointError: If the pipeline's scheduler is not one of a diffusion model.
        """
        super().__init__(source, pipeline, device)
        self.scheduler = _ddim_scheduler(source, pipeline.scheduler)
        self.path = VariancePreserving(self.scheduler.alphas_cumprod.double().clamp_min(SMALLEST_ALPHA_BAR))

    def velocity(self, module: nn.Module, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        """See :meth:`DiffusersModel.velocity`; the largest time is that of the last timestep, a little below 1."""
        kind = KINDS[self.scheduler.config.prediction_type]
        time = self.time_per_state(x_t, t)
        return DiffusionField(network=partial(self.call_network, module), path=self.path, kind=kind)(x_t, time, condition)

    def initial_state(self, noise: Tensor, t: float) -> Tensor:
        """Noise as the network's own state at ``t``, in flow coordinates: divided by a + b (0.93 of it at t = 0.93)."""
        a, b = self.path.flow_coefficients(t, noise)
        return noise / (a + b)

    def default_times(self, steps: int) -> Tensor:
        """The noise levels of the timesteps that a DDIM scheduler with the pipeline's settings takes, then 0; float32 ``(steps + 1,)``.

        They start at the first of those timesteps, below 1. The last step goes to the predicted data, ᾱ = 1: DDIM's
        ``set_alpha_to_one=True``. Where a configuration says False, as Stable Diffusion 1.5's, diffusers' DDIM stops at the ᾱ of timestep
        0 and leaves that little of the predicted noise in the latent (2.9 % of its standard deviation).

        Raises:
            ValueError: If there are no steps, or more than timesteps.
        """
        if not 1 <= steps <= len(self.path.alphas_cumprod):
            raise ValueError(f"steps must be at least 1 and at most {len(self.path.alphas_cumprod)}, got {steps}")
        self.scheduler.set_timesteps(steps)
        times = self.path.times()[self.scheduler.timesteps]
        return torch.cat([times, times.new_zeros(1)]).float()


class DiffusionSource(DiffusersSource):
    """Where a UNet pipeline comes from: its size is the UNet's, and any multiple of a latent pixel will do."""

    network: ClassVar[str] = "unet"

    def height_of(self, pipeline: Any) -> int:
        """Pixels: what was asked for, or the pipeline's own size."""
        return self.height or _own_size(pipeline)[0]

    def width_of(self, pipeline: Any) -> int:
        """Pixels: what was asked for, or the pipeline's own size."""
        return self.width or _own_size(pipeline)[1]

    def pixels_per_token(self, pipeline: Any) -> int:
        """A latent pixel is a token of the UNet's highest resolution."""
        return pipeline.vae_scale_factor

    def check_size(self, pipeline: Any) -> None:
        """See :meth:`DiffusersSource.check_size`; refuses distilled UNets as well.

        Raises:
            CheckpointError: If the UNet embeds a guidance scale, as those distilled to few steps do.
        """
        super().check_size(pipeline)
        if pipeline.unet.config.time_cond_proj_dim is not None:
            raise CheckpointError(f"the UNet of {self.path} embeds a guidance scale (it is distilled); use the model it came from")


def _own_size(pipeline: Any) -> tuple[int, int]:
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def _ddim_scheduler(source: DiffusersSource, scheduler: Any) -> Any:
    """A DDIM scheduler with the settings of the pipeline's own."""
    from diffusers import DDIMScheduler

    if "beta_schedule" not in scheduler.config:
        raise CheckpointError(
            f"{source.path} has a {type(scheduler).__name__}, which names no betas; {type(source).__name__} reads diffusion models, whose "
            "scheduler does"
        )
    if (kind := scheduler.config.prediction_type) not in KINDS:
        raise CheckpointError(f"the scheduler of {source.path} has an unknown prediction_type {kind!r}{close_match(kind, KINDS)}")
    return DDIMScheduler.from_config(scheduler.config)
