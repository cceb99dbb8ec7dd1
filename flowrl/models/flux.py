"""FLUX.1 [dev], FLUX.1 [schnell], and everything else that diffusers loads as a ``FluxPipeline``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from flowrl.errors import ConfigError
from flowrl.models.packing import pack, unpack
from flowrl.models.pipeline import DiffusersModel
from flowrl.models.source import DiffusersSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from flowrl.flow import Condition

__all__ = ["Flux1", "Flux1Model", "grid_positions"]

_MOST_T5_TOKENS = 512
_PATCH = 2  # latent pixels per side of a token


def grid_positions(*ends: tuple[int, int] | int, device: torch.device) -> Tensor:
    """What a rotary embedding reads of each token of a grid: one coordinate for each axis, the last one running fastest.

    Args:
        ends: Of each axis: its first coordinate and the one after its last, or the latter alone.
        device: Of the result.

    Returns:
        float32, ``(token, axis)``.
    """
    axes = [torch.arange(*(end if isinstance(end, tuple) else (end,)), dtype=torch.float32, device=device) for end in ends]
    return torch.cartesian_prod(*axes)


class Flux1Model(DiffusersModel):
    """A ``FluxPipeline`` as an image model: a latent's 2 x 2 patches are tokens, and guidance may be an input of the network."""

    source: Flux1

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Latent channels, height, width; the network's own channels are those of a patch."""
        channels, height, width = super().state_shape
        return channels // _PATCH**2, height, width

    def encode_texts(self, prompts: list[str]) -> Mapping[str, Tensor]:
        """``prompt_embeds`` (batch, token, channel) of T5 and ``pooled_prompt_embeds`` (batch, channel) of CLIP."""
        tokens, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, device=self.device, max_sequence_length=self.source.max_sequence_length
        )
        return {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}

    def schedule(self, steps: int) -> dict[str, Any]:
        """A linear grid, shifted by the scheduler: by the picture's size (dev), or not at all (schnell)."""
        return self.linear_schedule(steps)

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DiffusersModel.predict`."""
        velocity = self.call_on_tokens(module, pack(x_t, _PATCH), self.positions(x_t.device), timestep, condition)
        return unpack(velocity, x_t.shape[-2], x_t.shape[-1], _PATCH)

    def positions(self, device: torch.device) -> Tensor:
        """Picture, row and column of every token of the picture that is drawn, which is number 0."""
        _, height, width = self.state_shape
        return grid_positions(1, height // _PATCH, width // _PATCH, device=device)

    def call_on_tokens(self, module: nn.Module, tokens: Tensor, positions: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The network's answer ``(batch, token, channel)`` for image tokens of that shape; one position for each token."""
        texts = condition.tensors["prompt_embeds"]
        guided = self.module.config.guidance_embeds
        return module(
            hidden_states=tokens,
            timestep=timestep / self.pipeline.scheduler.config.num_train_timesteps,
            guidance=torch.full_like(timestep, self.source.embedded_guidance) if guided else None,
            encoder_hidden_states=texts,
            pooled_projections=condition.tensors["pooled_prompt_embeds"],
            txt_ids=texts.new_zeros(texts.shape[1], 3),
            img_ids=positions,
            return_dict=False,
        )[0]


@dataclass(frozen=True, kw_only=True)
class Flux1(DiffusersSource):
    """A FLUX.1 pipeline to load; see :class:`DiffusersSource` for the fields that all adapters share.

    ``guidance_scale`` is true classifier-free guidance with a negative prompt, which costs a second evaluation and which FLUX.1 does
    without; what diffusers' pipeline calls ``guidance_scale`` is ``embedded_guidance`` here.

    >>> source = Flux1(path="black-forest-labs/FLUX.1-dev", height=720, width=720)
    >>> source.embedded_guidance, source.guidance_scale
    (3.5, 1.0)

    Attributes:
        embedded_guidance: The guidance scale that a distilled network reads as an input (FLUX.1 [dev]: 3.5 is usual, in the G2RPO paper
            as well); a network without that input (FLUX.1 [schnell]) ignores it.
        max_sequence_length: Tokens of the T5 encoder, 1 to 512; diffusers takes 512 for dev, 256 for schnell.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str] = "FluxPipeline"
    model: ClassVar[type[DiffusersModel]] = Flux1Model
    unused_parts: ClassVar[tuple[str, ...]] = ("image_encoder", "feature_extractor")

    embedded_guidance: float = 3.5
    max_sequence_length: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_sequence_length <= _MOST_T5_TOKENS:
            raise ConfigError(f"max_sequence_length must be in 1..{_MOST_T5_TOKENS}, got {self.max_sequence_length}")
        if not self.embedded_guidance >= 0:
            raise ConfigError(f"embedded_guidance must be >= 0, got {self.embedded_guidance}; FLUX.1 [dev] is usually sampled with 3.5")

    def load(self, device: torch.device | str) -> Flux1Model:
        """See :meth:`DiffusersSource.load`."""
        return super().load(device)

    def pixels_per_token(self, pipeline: Any) -> int:
        """Side of a token's square in pixels; the network's configuration counts in patches."""
        return pipeline.vae_scale_factor * _PATCH
