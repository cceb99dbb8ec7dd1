"""Small Stable Diffusion 1.5 and XL pipelines with random weights, their schedulers configured as those of the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.models.tiny.texts import WORDS, clip_text_encoder, random_weights
from flowrl.models.tiny.words import clip_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline

__all__ = ["tiny_sd", "tiny_sdxl"]

TEXT_WIDTH, TEXT_LENGTH, TIME_WIDTH = 32, 8, 8
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""The noise schedule of all Stable Diffusion models before the third."""


def tiny_sd(*, vocabulary: Sequence[str] = WORDS, image_size: int = 16, seed: int = 0, **schedule: Any) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.5 pipeline: PNDM, one CLIP text encoder, no safety checker.

    Args:
        vocabulary: Words that become one token each.
        image_size: Pixels per side, a multiple of 4; a latent has half as many.
        seed: Of the weights.
        schedule: Replaces settings of the scheduler, such as ``prediction_type="v_prediction"``.
    """
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    tokenizer = clip_tokenizer(vocabulary, max_length=TEXT_LENGTH)
    with random_weights(seed):
        encoder = clip_text_encoder(tokenizer, width=TEXT_WIDTH)
        unet = UNet2DConditionModel(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            **_unet_sizes(image_size),
        )
        vae = _vae(image_size, scaling_factor=0.18215)
    return StableDiffusionPipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        scheduler=PNDMScheduler(**{**NOISE, "skip_prk_steps": True, "set_alpha_to_one": False, **schedule}),
        text_encoder=encoder,
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl(*, vocabulary: Sequence[str] = WORDS, image_size: int = 16, seed: int = 0, **schedule: Any) -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL pipeline: Euler, two CLIP text encoders, sizes and crops as a condition; see :func:`tiny_sd`."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    tokenizer, tokenizer_2 = (clip_tokenizer(vocabulary, max_length=TEXT_LENGTH) for _ in range(2))
    with random_weights(seed):
        encoder = clip_text_encoder(tokenizer, width=TEXT_WIDTH)
        config = type(encoder.config).from_dict(encoder.config.to_dict() | {"projection_dim": TEXT_WIDTH})
        encoder_2 = CLIPTextModelWithProjection(config)
        encoder_2.get_input_embeddings().weight.data.normal_(std=0.7)
        unet = UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * TEXT_WIDTH,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_WIDTH,
            projection_class_embeddings_input_dim=6 * TIME_WIDTH + TEXT_WIDTH,
            **_unet_sizes(image_size),
        )
        vae = _vae(image_size, scaling_factor=0.13025)
    return StableDiffusionXLPipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        scheduler=EulerDiscreteScheduler(**{**NOISE, "timestep_spacing": "leading", **schedule}),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder_2.eval(),
        tokenizer_2=tokenizer_2,
        add_watermarker=False,
    )


def _unet_sizes(image_size: int) -> dict[str, Any]:
    return {
        "sample_size": image_size // 2,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    }


def _vae(image_size: int, *, scaling_factor: float) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=image_size,
        scaling_factor=scaling_factor,
    )
