"""Stable Diffusion XL, and everything else that diffusers loads as a ``StableDiffusionXLPipeline``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from flowrl.errors import ConfigError
from flowrl.flow import ClassifierFreeGuidance, Condition, VelocityField
from flowrl.models.diffusion import DiffusionModel, DiffusionSource
from flowrl.models.pipeline import DiffusersModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


__all__ = ["StableDiffusionXL", "StableDiffusionXLModel"]


class StableDiffusionXLModel(DiffusionModel):
    """A ``StableDiffusionXLPipeline`` as an image model (arXiv:2307.01952)."""

    source: StableDiffusionXL

    def encode_texts(self, prompts: list[str]) -> dict[str, Tensor]:
        """``prompt_embeds`` (batch, token, channel) of both text encoders, ``pooled_prompt_embeds`` (batch, channel) of the second."""
        tokens, _, pooled, _ = self.pipeline.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        return {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}

    def encode(self, prompts: Sequence[str]) -> Condition:
        """See :class:`ImageModel`; with ``time_ids`` (batch, 6): original size, crop and target size, pixels (Sec. 2.2 of the paper)."""
        condition = super().encode(prompts)
        size = self.source.height_of(self.pipeline), self.source.width_of(self.pipeline)
        ids = torch.tensor([*(self.source.original_size or size), *self.source.crop_top_left, *size], device=self.device)
        return Condition({**condition.tensors, "time_ids": ids.expand(len(condition), -1)})

    def guided(self, network: VelocityField) -> VelocityField:
        """Classifier-free guidance; without a negative prompt away from zeros, where the pipeline's configuration asks for it."""
        negative = self.encode([self.negative_prompt])
        if not self.negative_prompt and self.pipeline.config.force_zeros_for_empty_prompt:
            zeros = {name: tensor if name == "time_ids" else torch.zeros_like(tensor) for name, tensor in negative.tensors.items()}
            negative = Condition(zeros)
        return ClassifierFreeGuidance(field=network, scale=self.source.guidance_scale, negative=negative)

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """What the UNet predicts at its own state and integer timestep; :class:`DiffusionModel` makes a velocity of it."""
        tensors = condition.tensors
        added = {"text_embeds": tensors["pooled_prompt_embeds"], "time_ids": tensors["time_ids"]}
        embeds = tensors["prompt_embeds"]
        return module(x_t, timestep, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False)[0]


@dataclass(frozen=True, kw_only=True)
class StableDiffusionXL(DiffusionSource):
    """A Stable Diffusion XL pipeline to load; see :class:`DiffusersSource` for the fields that all adapters share.

    Its grids start below 1: use :class:`samplers.DiffusionGrid`.

    >>> source = StableDiffusionXL(path="stabilityai/stable-diffusion-xl-base-1.0", guidance_scale=5.0)
    >>> source.crop_top_left
    (0, 0)

    Attributes:
        original_size: Height and width, pixels, of the picture as whose crop the model shall draw; None is the picture's own size.
        crop_top_left: Where that crop begins, pixels from the top and from the left.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str] = "StableDiffusionXLPipeline"
    model: ClassVar[type[DiffusersModel]] = StableDiffusionXLModel
    unused_parts: ClassVar[tuple[str, ...]] = ("feature_extractor", "image_encoder")

    original_size: tuple[int, int] | None = None
    crop_top_left: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.original_size or (1, 1)) < 1 or min(self.crop_top_left) < 0:
            raise ConfigError(
                f"original_size must be at least 1 x 1 and crop_top_left at least 0, 0, got {self.original_size} and {self.crop_top_left}"
            )

    def load(self, device: torch.device | str) -> StableDiffusionXLModel:
        """See :meth:`DiffusersSource.load`."""
        return super().load(device)
