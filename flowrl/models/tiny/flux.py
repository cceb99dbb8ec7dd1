"""Small random pipelines of the FLUX family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from flowrl.models.tiny.autoencoder import kl_autoencoder
from flowrl.models.tiny.texts import WORDS, clip_text_encoder, qwen3, qwen_tokenizer, random_weights, t5_encoder, t5_tokenizer
from flowrl.models.tiny.words import clip_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, FluxKontextPipeline, FluxPipeline

__all__ = ["tiny_flux1", "tiny_flux1_kontext", "tiny_flux2_klein"]

_WIDTH = 32


def tiny_flux1(*, vocabulary: Sequence[str] = WORDS, schnell: bool = False, seed: int = 0) -> FluxPipeline:
    """A FLUX.1 pipeline in small: VAE factor 2, so that 16 x 16 pixels are 16 tokens.

    Args:
        vocabulary: Words that become one token each.
        schnell: No guidance input and no shift by the picture's size, as in FLUX.1 [schnell]; otherwise as in FLUX.1 [dev].
        seed: Of the random weights.
    """
    from diffusers import FluxPipeline

    return FluxPipeline(**_flux1_parts(vocabulary, seed, distilled_guidance=not schnell))


def tiny_flux1_kontext(*, vocabulary: Sequence[str] = WORDS, seed: int = 0) -> FluxKontextPipeline:
    """A FLUX.1 Kontext pipeline in small; its parts are those of :func:`tiny_flux1`."""
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**_flux1_parts(vocabulary, seed, distilled_guidance=True))


def tiny_flux2_klein(*, vocabulary: Sequence[str] = WORDS, distilled: bool = False, seed: int = 0) -> Flux2KleinPipeline:
    """A FLUX.2 [klein] pipeline in small: VAE factor 2, a narrow text encoder with the 27 layers that the pipeline looks for.

    Args:
        vocabulary: Words that become one token each.
        distilled: Whether the pipeline says that it takes no guidance.
        seed: Of the random weights.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel

    tokenizer, width = qwen_tokenizer(vocabulary), 16
    with random_weights(seed):
        text_encoder, vae = qwen3(tokenizer, width=width, layers=27), _flux2_autoencoder()
        transformer = Flux2Transformer2DModel(
            in_channels=4 * vae.config.latent_channels,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * width,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ).eval()
    return Flux2KleinPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        is_distilled=distilled,
    )


def _flux1_parts(vocabulary: Sequence[str], seed: int, *, distilled_guidance: bool) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    clip, t5 = clip_tokenizer(vocabulary, max_length=16), t5_tokenizer(vocabulary, max_length=512)
    with random_weights(seed):
        vae = kl_autoencoder()
        transformer = FluxTransformer2DModel(
            in_channels=4 * vae.config.latent_channels,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=_WIDTH,
            pooled_projection_dim=_WIDTH,
            guidance_embeds=distilled_guidance,
            axes_dims_rope=(4, 6, 6),
        ).eval()
        encoders = {"text_encoder": clip_text_encoder(clip, width=_WIDTH), "text_encoder_2": t5_encoder(t5, width=_WIDTH)}
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if distilled_guidance else {"shift": 1.0}
    scheduler = FlowMatchEulerDiscreteScheduler(**shift)
    return {"transformer": transformer, "vae": vae, "scheduler": scheduler, "tokenizer": clip, "tokenizer_2": t5, **encoders}


def _flux2_autoencoder() -> AutoencoderKLFlux2:
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    # Batch statistics other than 0 and 1 show whether they are used.
    torch.nn.init.uniform_(vae.bn.running_mean, -0.5, 0.5)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    return vae.eval()
