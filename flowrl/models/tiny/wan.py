"""Small Wan text-to-video pipelines with random weights: 2.1, the two experts of 2.2 A14B, and 2.2 5B."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.models.tiny.texts import WORDS, random_weights, t5_tokenizer, umt5_encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

__all__ = ["tiny_wan", "tiny_wan22", "tiny_wan22_5b"]

TEXT_WIDTH = 32
SHIFT = 3.0


def tiny_wan(*, vocabulary: Sequence[str] = WORDS, scheduler: Any = None, seed: int = 0) -> WanPipeline:
    """A Wan 2.1 pipeline: one transformer, 8 pixels and 4 frames per latent.

    Args:
        vocabulary: Words that become one token each.
        scheduler: None is UniPC on flow sigmas, as the real ones have it.
        seed: Of the weights.
    """
    with random_weights(seed):
        parts = {"transformer": _transformer(4), "vae": _vae(4)}
        return _pipeline(vocabulary, scheduler, parts)


def tiny_wan22(*, vocabulary: Sequence[str] = WORDS, scheduler: Any = None, seed: int = 0) -> WanPipeline:
    """A Wan 2.2 A14B pipeline: one expert for t >= 0.875, another below; see :func:`tiny_wan`."""
    with random_weights(seed):
        parts = {"transformer": _transformer(4), "transformer_2": _transformer(4), "vae": _vae(4)}
        return _pipeline(vocabulary, scheduler, parts | {"boundary_ratio": 0.875})


def tiny_wan22_5b(*, vocabulary: Sequence[str] = WORDS, scheduler: Any = None, seed: int = 0) -> WanPipeline:
    """A Wan 2.2 5B pipeline: 16 pixels per latent, a time per token; see :func:`tiny_wan`."""
    with random_weights(seed):
        vae = _vae(6, is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16)
        return _pipeline(vocabulary, scheduler, {"transformer": _transformer(6), "vae": vae, "expand_timesteps": True})


def _pipeline(vocabulary: Sequence[str], scheduler: Any, parts: dict[str, Any]) -> WanPipeline:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    tokenizer = t5_tokenizer(vocabulary)
    usual = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)
    encoder = umt5_encoder(tokenizer, width=TEXT_WIDTH)
    return WanPipeline(tokenizer=tokenizer, text_encoder=encoder, scheduler=scheduler or usual, **parts)


def _transformer(channels: int) -> WanTransformer3DModel:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
    ).eval()


def _vae(channels: int, **sizes: Any) -> AutoencoderKLWan:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * channel - 0.2 for channel in range(channels)],
        latents_std=[1.0 + 0.2 * channel for channel in range(channels)],
        **sizes,
    ).eval()
