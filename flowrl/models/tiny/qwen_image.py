"""A small Qwen-Image pipeline with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.models.tiny.texts import WORDS, qwen_tokenizer, qwen_vl, random_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import QwenImagePipeline

__all__ = ["tiny_qwen_image"]

_CHANNELS, _WIDTH, _TEXT_WIDTH = 4, 32, 32
_SHIFT = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
"""Of the published scheduler: its grids end at 0.02 before the last step to 0."""


def tiny_qwen_image(*, vocabulary: Sequence[str] = WORDS, seed: int = 0, **schedule: Any) -> QwenImagePipeline:
    """A Qwen-Image pipeline in small: VAE factor 2, so that 16 x 16 pixels are 16 tokens; ask for that size, its own is 256.

    Args:
        vocabulary: Words that become one token each.
        seed: Of the weights.
        schedule: Replaces settings of the scheduler, such as ``shift_terminal``.
    """
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

    tokenizer = qwen_tokenizer(vocabulary, max_length=2048)
    with random_weights(seed):
        encoder = qwen_vl(tokenizer, width=_TEXT_WIDTH)
        transformer = QwenImageTransformer2DModel(
            in_channels=4 * _CHANNELS,
            out_channels=_CHANNELS,
            num_layers=2,
            attention_head_dim=_WIDTH // 2,
            num_attention_heads=2,
            joint_attention_dim=_TEXT_WIDTH,
            axes_dims_rope=(8, 4, 4),
        )
        vae = AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=_CHANNELS,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[-0.75, -0.7, 0.1, 0.9],
            latents_std=[2.8, 1.5, 2.3, 1.2],
        )
    return QwenImagePipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**{**_SHIFT, **schedule}),
    )
