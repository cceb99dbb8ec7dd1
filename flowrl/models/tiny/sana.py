"""A small Sana pipeline with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.models.tiny.gemma import gemma2, gemma_tokenizer
from flowrl.models.tiny.texts import WORDS, random_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import SanaPipeline

__all__ = ["tiny_sana"]

_CHANNELS, _WIDTH, _TEXT_WIDTH = 4, 32, 32


def tiny_sana(*, vocabulary: Sequence[str] = WORDS, seed: int = 0, scheduler: Any = None) -> SanaPipeline:
    """A Sana pipeline of 32 x 32 pixels, 16 image tokens: linear attention, Gemma 2, an autoencoder that shrinks by 8.

    Args:
        vocabulary: Words that become one token each.
        seed: Of the weights.
        scheduler: None for one that takes Euler steps; the published pipelines have a ``DPMSolverMultistepScheduler``.
    """
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel

    tokenizer = gemma_tokenizer(vocabulary)
    blocks = (8, 8, 8, 8)
    with random_weights(seed):
        encoder = gemma2(tokenizer, width=_TEXT_WIDTH)
        transformer = SanaTransformer2DModel(
            in_channels=_CHANNELS,
            out_channels=_CHANNELS,
            num_attention_heads=2,
            attention_head_dim=_WIDTH // 2,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=_WIDTH // 2,
            cross_attention_dim=_WIDTH,
            caption_channels=_TEXT_WIDTH,
            sample_size=4,
        )
        vae = AutoencoderDC(
            latent_channels=_CHANNELS,
            encoder_block_out_channels=blocks,
            decoder_block_out_channels=blocks,
            encoder_layers_per_block=(1,) * len(blocks),
            decoder_layers_per_block=(1,) * len(blocks),
            encoder_qkv_multiscales=((),) * len(blocks),
            decoder_qkv_multiscales=((),) * len(blocks),
            scaling_factor=0.41407,
        )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
