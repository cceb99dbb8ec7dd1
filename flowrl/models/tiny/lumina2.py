"""A small Lumina-Image 2.0 pipeline with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.models.tiny.autoencoder import kl_autoencoder
from flowrl.models.tiny.gemma import gemma2, gemma_tokenizer
from flowrl.models.tiny.texts import WORDS, random_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import Lumina2Pipeline

__all__ = ["tiny_lumina2"]

_CHANNELS, _WIDTH, _TEXT_WIDTH = 4, 32, 32
_SYSTEM_WORDS = (
    *("You", "are", "an", "assistant", "designed", "to", "generate", "superior", "images", "with", "degree", "image", "text"),
    *("alignment", "based", "textual", "prompts", "or", "user", "Prompt", "Start"),
)
"""Of the sentence that the pipeline writes before a prompt, so that it does not fill the prompt's tokens letter by letter."""


def tiny_lumina2(*, vocabulary: Sequence[str] = WORDS, seed: int = 0, **schedule: Any) -> Lumina2Pipeline:
    """A Lumina-Image 2.0 pipeline of 64 x 64 pixels, 16 image tokens: Gemma 2, an autoencoder that shrinks by 8, as the pipeline demands.

    Args:
        vocabulary: Words that become one token each.
        seed: Of the weights.
        schedule: Replaces settings of the scheduler, such as ``shift``.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    tokenizer = gemma_tokenizer([*vocabulary, *_SYSTEM_WORDS])
    with random_weights(seed):
        encoder = gemma2(tokenizer, width=_TEXT_WIDTH)
        transformer = Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=_CHANNELS,
            hidden_size=_WIDTH,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(8, 4, 4),
            axes_lens=(300, 16, 16),
            cap_feat_dim=_TEXT_WIDTH,
        )
        vae = kl_autoencoder(latent_channels=_CHANNELS, channels=(8, 8, 8, 8), scaling_factor=0.3611, shift_factor=0.1159)
    return Lumina2Pipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **schedule}),
    )
