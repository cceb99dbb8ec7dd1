"""A small Z-Image pipeline with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from flowrl.models.tiny.autoencoder import kl_autoencoder
from flowrl.models.tiny.texts import WORDS, qwen3, qwen_tokenizer, random_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import ZImagePipeline

__all__ = ["tiny_z_image"]

_CHANNELS, _WIDTH, _TEXT_WIDTH = 4, 32, 32


def tiny_z_image(*, vocabulary: Sequence[str] = WORDS, seed: int = 0, **schedule: Any) -> ZImagePipeline:
    """A Z-Image pipeline in small: VAE factor 2, so that 16 x 16 pixels are 16 tokens; ask for that size, its own is 1024.

    Args:
        vocabulary: Words that become one token each.
        seed: Of the weights.
        schedule: Replaces settings of the scheduler, such as ``shift``.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    tokenizer = qwen_tokenizer(vocabulary)
    with random_weights(seed):
        encoder = qwen3(tokenizer, width=_TEXT_WIDTH).model
        transformer = ZImageTransformer2DModel(
            in_channels=_CHANNELS,
            dim=_WIDTH,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=_TEXT_WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 32, 32],
        )
        vae = kl_autoencoder(latent_channels=_CHANNELS, scaling_factor=0.3611, shift_factor=0.1159)
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            torch.nn.init.normal_(token, std=0.02)  # older diffusers leave them unset
    return ZImagePipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.eval(),
        vae=vae,
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **schedule}),
    )
