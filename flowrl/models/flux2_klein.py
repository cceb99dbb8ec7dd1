"""FLUX.2 [klein], distilled and base: everything that diffusers loads as a ``Flux2KleinPipeline``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch.nn.functional import pixel_shuffle

from flowrl.errors import ConfigError
from flowrl.models.flux import grid_positions
from flowrl.models.packing import pack, unpack
from flowrl.models.pipeline import DiffusersModel
from flowrl.models.source import DiffusersSource, pipeline_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor, nn

    from flowrl.flow import Condition

__all__ = ["Flux2Klein", "Flux2KleinModel"]

_PATCH = 2  # latent pixels per side of a token
_MOST_QWEN_TOKENS = 512


class Flux2KleinModel(DiffusersModel):
    """A ``Flux2KleinPipeline`` as an image model: text to picture, prompts read by three layers of Qwen3.

    A state is the autoencoder's latent with each 2 x 2 patch in the channels, standardised by the autoencoder's batch statistics.
    """

    source: Flux2Klein

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The network's channels, and one place per token."""
        cell = self.source.pixels_per_token(self.pipeline)
        return self.module.config.in_channels, self.source.height_of(self.pipeline) // cell, self.source.width_of(self.pipeline) // cell

    def encode_texts(self, prompts: list[str]) -> Mapping[str, Tensor]:
        """``prompt_embeds`` (batch, token, channel), padded to ``max_sequence_length``: the network attends to the padding as well."""
        embeddings, _ = self.pipeline.encode_prompt(
            prompts,
            device=self.device,
            max_sequence_length=self.source.max_sequence_length,
            text_encoder_out_layers=self.source.text_layers,
        )
        return {"prompt_embeds": embeddings}

    def schedule(self, steps: int) -> dict[str, Any]:
        """A linear grid, shifted by a rule of its own that counts tokens and steps."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return self.linear_schedule(steps) | {"mu": compute_empirical_mu(image_seq_len=self.tokens, num_steps=steps)}

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DiffusersModel.predict`."""
        texts, (height, width) = condition.tensors["prompt_embeds"], x_t.shape[-2:]
        velocity = module(
            hidden_states=pack(x_t, 1),
            timestep=timestep / self.pipeline.scheduler.config.num_train_timesteps,
            guidance=None,
            encoder_hidden_states=texts,
            txt_ids=grid_positions(1, 1, 1, texts.shape[1], device=x_t.device),
            img_ids=grid_positions(1, height, width, 1, device=x_t.device),
            return_dict=False,
        )[0]
        return unpack(velocity, height, width, 1)

    def pixels(self, latents: Tensor) -> Tensor:
        """See :meth:`DiffusersModel.pixels`; undoes the batch normalisation and the patches first."""
        vae = self.pipeline.vae
        variance = vae.bn.running_var + vae.config.batch_norm_eps
        raw = latents * variance.sqrt()[:, None, None] + vae.bn.running_mean[:, None, None]
        return vae.decode(pixel_shuffle(raw, _PATCH), return_dict=False)[0]


@dataclass(frozen=True, kw_only=True)
class Flux2Klein(DiffusersSource):
    """A FLUX.2 [klein] pipeline to load; see :class:`DiffusersSource` for the fields that all adapters share.

    The distilled models (``klein-4B``, ``klein-9B``) are sampled in 4 steps without guidance; the base models want classifier-free
    guidance with a scale of about 4.

    >>> Flux2Klein(path="black-forest-labs/FLUX.2-klein-base-4B", guidance_scale=4.0).text_layers
    (9, 18, 27)

    Attributes:
        max_sequence_length: Tokens to which a prompt with its chat template is padded or cut, 1 to 512.
        text_layers: Layers of the text encoder whose outputs make up an embedding; 0 is the words themselves.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str] = "Flux2KleinPipeline"
    model: ClassVar[type[DiffusersModel]] = Flux2KleinModel

    max_sequence_length: int = 512
    text_layers: tuple[int, ...] = (9, 18, 27)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_sequence_length <= _MOST_QWEN_TOKENS:
            raise ConfigError(f"max_sequence_length must be in 1..{_MOST_QWEN_TOKENS}, got {self.max_sequence_length}")
        if not self.text_layers or min(self.text_layers) < 0:
            raise ConfigError(f"text_layers must name at least one layer, none negative, got {self.text_layers}")

    def load(self, device: torch.device | str) -> Flux2KleinModel:
        """See :meth:`DiffusersSource.load`.

        Raises:
            ConfigError: If a distilled model shall be guided, beside what :meth:`DiffusersSource.load` raises.
        """
        if self.guidance_scale != 1 and pipeline_config(self.path).get("is_distilled"):
            raise ConfigError(
                f"{self.path} is distilled, without guidance, got guidance_scale {self.guidance_scale}; leave it at 1, or use a base one"
            )
        return super().load(device)

    def pixels_per_token(self, pipeline: Any) -> int:
        """Side of a token's square in pixels; the network's configuration counts in patches."""
        return pipeline.vae_scale_factor * _PATCH
