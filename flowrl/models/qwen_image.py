"""Qwen-Image, and everything else that diffusers loads as a ``QwenImagePipeline``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowrl.errors import ConfigError
from flowrl.flow import NormKeepingGuidance, patch_norm
from flowrl.models.latents import channel_scaled
from flowrl.models.packing import pack, unpack
from flowrl.models.padding import pad_tokens, trim_tokens
from flowrl.models.pipeline import DiffusersModel
from flowrl.models.source import DiffusersSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowrl.flow import Condition, VelocityField

__all__ = ["QwenImage", "QwenImageModel"]

_MOST_TOKENS = 1024


class QwenImageModel(DiffusersModel):
    """A ``QwenImagePipeline`` as an image model (arXiv:2508.02324): the network's tokens are patches, its autoencoder is a video's."""

    source: QwenImage

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Latent channels, height, width."""
        channels, height, width = super().state_shape
        return channels // self.module.config.patch_size**2, height, width

    def encode_texts(self, prompts: list[str]) -> dict[str, Tensor]:
        """``prompt_embeds`` (batch, token, channel) and ``prompt_mask`` (batch, token) of Qwen2.5-VL, without the instruction's tokens."""
        longest = self.source.max_sequence_length
        embeds, mask = self.pipeline.encode_prompt(list(prompts), device=self.device, max_sequence_length=longest)
        embeds, mask = pad_tokens(embeds, mask, longest)
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def schedule(self, steps: int) -> dict[str, Any]:
        """A linear grid, shifted by the scheduler by the picture's size."""
        return self.linear_schedule(steps)

    def guided(self, network: VelocityField) -> VelocityField:
        """Guidance that keeps the length of every token (diffusers' ``true_cfg_scale``)."""
        negative = self.encode([self.negative_prompt])
        return NormKeepingGuidance(field=network, scale=self.source.guidance_scale, negative=negative, norm=patch_norm)

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DiffusersModel.predict`."""
        embeds, mask = trim_tokens(condition.tensors["prompt_embeds"], condition.tensors["prompt_mask"])
        patch = self.module.config.patch_size
        height, width = x_t.shape[-2:]
        tokens = module(
            hidden_states=pack(x_t, patch),
            timestep=timestep / self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=None if mask.all() else mask,
            img_shapes=[[(1, height // patch, width // patch)]] * len(x_t),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width, patch)

    def pixels(self, latents: Tensor) -> Tensor:
        """See :meth:`DiffusersModel.pixels`; a picture is a video of one frame to the autoencoder."""
        vae = self.pipeline.vae
        return vae.decode(channel_scaled(latents.unsqueeze(2), vae.config), return_dict=False)[0].squeeze(2)


@dataclass(frozen=True, kw_only=True)
class QwenImage(DiffusersSource):
    """A Qwen-Image pipeline to load; see :class:`DiffusersSource` for the fields that all adapters share.

    ``guidance_scale`` is what diffusers' pipeline calls ``true_cfg_scale``. Its guidance acts only where a negative prompt is given, here
    always; the model's authors pass a single space.

    >>> source = QwenImage(path="Qwen/Qwen-Image", guidance_scale=4.0, negative_prompt=" ")
    >>> source.max_sequence_length
    512

    Attributes:
        max_sequence_length: Tokens of a prompt, 1 to 1024.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str] = "QwenImagePipeline"
    model: ClassVar[type[DiffusersModel]] = QwenImageModel

    max_sequence_length: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_sequence_length <= _MOST_TOKENS:
            raise ConfigError(f"max_sequence_length must be in 1..{_MOST_TOKENS}, got {self.max_sequence_length}")

    def load(self, device: torch.device | str) -> QwenImageModel:
        """See :meth:`DiffusersSource.load`.

        Raises:
            ConfigError: If the installed diffusers lets a prompt's padding into attention, so that prompts in a batch touch each other.
        """
        from diffusers.models.transformers import transformer_qwenimage

        if not hasattr(transformer_qwenimage, "compute_text_seq_len_from_mask"):
            raise ConfigError("this diffusers ignores which tokens of a Qwen-Image prompt are padding; pip install 'diffusers>=0.37'")
        return super().load(device)
