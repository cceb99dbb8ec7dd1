"""Stable Diffusion 3 and 3.5, and everything else that diffusers loads as a ``StableDiffusion3Pipeline``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowrl.errors import ConfigError
from flowrl.models.pipeline import DiffusersModel
from flowrl.models.source import DiffusersSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowrl.flow import Condition

__all__ = ["SD3Model", "StableDiffusion3"]

_MOST_T5_TOKENS = 512


class SD3Model(DiffusersModel):
    """A ``StableDiffusion3Pipeline`` as an image model (MMDiT, arXiv:2403.03206)."""

    source: StableDiffusion3

    def encode_texts(self, prompts: list[str]) -> dict[str, Tensor]:
        """``prompt_embeds`` (batch, token, channel) and ``pooled_prompt_embeds`` (batch, channel) of the three text encoders."""
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.source.max_sequence_length
        )
        return {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DiffusersModel.predict`."""
        return module(
            hidden_states=x_t,
            timestep=timestep,
            encoder_hidden_states=condition.tensors["prompt_embeds"],
            pooled_projections=condition.tensors["pooled_prompt_embeds"],
            return_dict=False,
        )[0]


@dataclass(frozen=True, kw_only=True)
class StableDiffusion3(DiffusersSource):
    """A Stable Diffusion 3 pipeline to load; see :class:`DiffusersSource` for the fields that all adapters share.

    >>> source = StableDiffusion3(path="stabilityai/stable-diffusion-3.5-medium", height=512, width=512, guidance_scale=4.5)
    >>> source.max_sequence_length
    256

    Attributes:
        max_sequence_length: Tokens of the T5 encoder, at most 512. A pipeline without one gets as many zero tokens, 0 for none.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str] = "StableDiffusion3Pipeline"
    model: ClassVar[type[DiffusersModel]] = SD3Model

    max_sequence_length: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_sequence_length <= _MOST_T5_TOKENS:
            raise ConfigError(f"max_sequence_length must be in 0..{_MOST_T5_TOKENS}, got {self.max_sequence_length}")

    def load(self, device: torch.device | str) -> SD3Model:
        """See :meth:`DiffusersSource.load`."""
        return super().load(device)

    def check_size(self, pipeline: Any) -> None:
        """Refuse a size for which the network has no positions, beside what :meth:`DiffusersSource.check_size` refuses."""
        super().check_size(pipeline)
        most = pipeline.transformer.config.pos_embed_max_size * pipeline.vae_scale_factor * pipeline.transformer.config.patch_size
        size = self.height_of(pipeline), self.width_of(pipeline)
        if max(size) > most:
            raise ConfigError(f"height and width must be at most {most} for {self.path}, got {size[0]} x {size[1]}")
