"""Stable Diffusion 1 and 2, and everything else that diffusers loads as a ``StableDiffusionPipeline``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flowrl.models.diffusion import DiffusionModel, DiffusionSource
from flowrl.models.pipeline import DiffusersModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowrl.flow import Condition


__all__ = ["StableDiffusion", "StableDiffusionModel"]


class StableDiffusionModel(DiffusionModel):
    """A ``StableDiffusionPipeline`` as an image model (latent diffusion, arXiv:2112.10752)."""

    source: StableDiffusion

    def encode_texts(self, prompts: list[str]) -> dict[str, Tensor]:
        """``prompt_embeds`` (batch, token, channel)."""
        tokens, _ = self.pipeline.encode_prompt(prompts, self.device, 1, False)  # noqa: FBT003 - its fourth is called without guidance
        return {"prompt_embeds": tokens}

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """What the UNet predicts at its own state and integer timestep; :class:`DiffusionModel` makes a velocity of it."""
        return module(x_t, timestep, encoder_hidden_states=condition.tensors["prompt_embeds"], return_dict=False)[0]


@dataclass(frozen=True, kw_only=True)
class StableDiffusion(DiffusionSource):
    """A Stable Diffusion pipeline to load; see :class:`DiffusersSource` for the fields.

    Its grids start below 1: use :class:`samplers.DiffusionGrid`. The safety checker is not loaded.

    >>> source = StableDiffusion(path="stable-diffusion-v1-5/stable-diffusion-v1-5", guidance_scale=7.5)
    >>> source.network
    'unet'
    """

    pipeline_name: ClassVar[str] = "StableDiffusionPipeline"
    model: ClassVar[type[DiffusersModel]] = StableDiffusionModel
    unused_parts: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor", "image_encoder")

    def load(self, device: torch.device | str) -> StableDiffusionModel:
        """See :meth:`DiffusersSource.load`."""
        return super().load(device)
