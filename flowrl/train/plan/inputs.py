"""What each network is called with: shapes only. One function per class of network, beside the sizes that its pipeline takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flowrl.train.plan.architecture import Architecture

__all__ = ["Geometry", "geometry_of", "network_inputs"]

CLIP_TOKENS = 77
# Tokens of the longest prompt where the model's config does not say (the adapters' and pipelines' defaults).
TEXT_TOKENS = {
    "StableDiffusion3Pipeline": 256,
    "FluxPipeline": 512,
    "FluxKontextPipeline": 512,
    "Flux2KleinPipeline": 512,
    "QwenImagePipeline": 512,
    "ZImagePipeline": 512,
    "SanaPipeline": 300,
    "Lumina2Pipeline": 256,
    "WanPipeline": 512,
    "StableDiffusionPipeline": CLIP_TOKENS,
    "StableDiffusionXLPipeline": CLIP_TOKENS,
}
DEFAULT_LATENT_SIDE = 128  # of pipelines whose network does not name its own size: 1024 pixels
WAN_SIZE = (480, 832)
WAN_FRAMES = 81
FRAMES_PER_LATENT = 4


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of one picture or video in a pipeline.

    Attributes:
        latent: Channels, frames of a video, height and width of a latent, as the decoder takes it.
        pixels: Frames, height and width; one frame for a picture.
        text_tokens: Of the longest prompt.
        condition_pictures: Pictures among the condition, whose tokens the network sees too.
    """

    latent: tuple[int, ...]
    pixels: tuple[int, int, int]
    text_tokens: int
    condition_pictures: int = 0

    @property
    def picture_bytes(self) -> int:
        """Of one decoded picture or video, float32."""
        frames, height, width = self.pixels
        return 3 * frames * height * width * 4

    @property
    def state_bytes(self) -> int:
        """Of one latent, float32."""
        return torch.Size(self.latent).numel() * 4


def geometry_of(architecture: Architecture, source: Any) -> Geometry:
    """The sizes that a model's config asks for.

    Raises:
        ValueError: If the size does not divide into latent pixels.
    """
    decoder, network = architecture.parts["vae"], architecture.parts.get("transformer") or architecture.parts["unet"]
    config, settings = decoder.config, network.config
    factor = _scale(decoder.kind, config)
    tokens = getattr(source, "max_sequence_length", None) or TEXT_TOKENS.get(architecture.pipeline, 0)
    if architecture.pipeline == "WanPipeline":
        height, width = source.height or WAN_SIZE[0], source.width or WAN_SIZE[1]
        frames = next((value for name in ("frames", "num_frames") if (value := getattr(source, name, None))), WAN_FRAMES)
        video = (config.get("z_dim", 16), (frames - 1) // FRAMES_PER_LATENT + 1, height // factor, width // factor)
        return Geometry(latent=video, pixels=(frames, height, width), text_tokens=tokens)
    side = settings.get("sample_size") or DEFAULT_LATENT_SIDE
    side = side * factor if isinstance(side, int) else DEFAULT_LATENT_SIDE * factor
    height, width = source.height or side, source.width or side
    channels = config.get("latent_channels") or config.get("z_dim", 16)
    pictures = 1 if architecture.pipeline == "FluxKontextPipeline" else 0
    latent = (channels, height // factor, width // factor)
    return Geometry(latent=latent, pixels=(1, height, width), text_tokens=tokens, condition_pictures=pictures)


def _scale(kind: str, config: Mapping[str, Any]) -> int:
    """Pixels of one side of a latent pixel, as the decoder counts them."""
    if kind == "AutoencoderDC":
        return 2 ** (len(config["encoder_block_out_channels"]) - 1)
    if "dim_mult" in config:
        return 2 ** len(config.get("temperal_downsample", (0, 1, 1)))
    return 2 ** (len(config.get("block_out_channels", (0,))) - 1)


def network_inputs(kind: str, config: Mapping[str, Any], geometry: Geometry, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a network's ``forward`` for so many states, on the meta device.

    Args:
        kind: The network's class.
        config: Its configuration.
        geometry: Of one picture.
        rows: States.
        dtype: Of states and embeddings.

    Raises:
        ValueError: If nothing is known about this class.
    """
    if kind not in _INPUTS:
        raise ValueError(f"how a {kind} is called is not known here, so its activations cannot be counted; known: {', '.join(_INPUTS)}")
    return _INPUTS[kind](config, geometry, _Maker(rows, dtype))


@dataclass(frozen=True)
class _Maker:
    rows: int
    dtype: torch.dtype

    def __call__(self, *shape: int) -> Tensor:
        """One tensor of the shape per row, stacked."""
        return torch.empty(self.rows, *shape, dtype=self.dtype, device="meta")

    @property
    def times(self) -> Tensor:
        return torch.empty(self.rows, device="meta")

    def places(self, tokens: int, axes: int = 3) -> Tensor:
        return torch.empty(tokens, axes, device="meta")

    def mask(self, tokens: int) -> Tensor:
        """Of a text without padding; real, since some networks read the lengths from it."""
        return torch.ones(self.rows, tokens, dtype=torch.bool)


def _image_tokens(geometry: Geometry, patch: int = 2) -> int:
    *_, height, width = geometry.latent
    return (height // patch) * (width // patch)


def _sd3(config: Mapping[str, Any], geometry: Geometry, make: _Maker) -> dict[str, Any]:
    return {
        "hidden_states": make(*geometry.latent),
        "timestep": make.times,
        "encoder_hidden_states": make(CLIP_TOKENS + geometry.text_tokens, config["joint_attention_dim"]),
        "pooled_projections": make(config["pooled_projection_dim"]),
    }


def _flux(config: Mapping[str, Any], geometry: Geometry, make: _Maker) -> dict[str, Any]:
    tokens = _image_tokens(geometry) * (1 + geometry.condition_pictures)
    return {
        "hidden_states": make(tokens, config["in_channels"]),
        "timestep": make.times,
        "guidance": make.times if config.get("guidance_embeds") else None,
        "pooled_projections": make(config["pooled_projection_dim"]),
        "encoder_hidden_states": make(geometry.text_tokens, config["joint_attention_dim"]),
        "txt_ids": make.places(geometry.text_tokens),
        "img_ids": make.places(tokens),
    }


def _flux2(config: Mapping[str, Any], geometry: Geometry, make: _Maker) -> dict[str, Any]:
    tokens = _image_tokens(geometry)
    return {
        "hidden_states": make(tokens, config["in_channels"]),
        "timestep": make.times,
        "guidance": make.times if config.get("guidance_embeds") else None,
        "encoder_hidden_states": make(geometry.text_tokens, config["joint_attention_dim"]),
        "txt_ids": make.places(geometry.text_tokens, 4),
        "img_ids": make.places(tokens, 4),
    }


def _qwen_image(config: Mapping[str, Any], geometry: Geometry, make: _Maker) -> dict[str, Any]:
    *_, height, width = geometry.latent
    return {
        "hidden_states": make(_image_tokens(geometry), config["in_channels"]),
        "timestep": make.times,
        "encoder_hidden_states": make(geometry.text_tokens, config["joint_attention_dim"]),
        "img_shapes": [[(1, height // 2, width // 2)]] * make.rows,
    }


def _z_image(config: Mapping[str, Any], geometry: Geometry, make: _Maker) -> dict[str, Any]:
    channels, height, width = geometry.latent
    return {
        "x": list(make(channels, 1, height, width)),
        "t": make.times,
        "cap_feats": list(make(geometry.text_tokens, config["cap_feat_dim"])),
    }


def _sana(config: Mapping[str, Any], geometry: Geometry, make: _Maker) -> dict[str, Any]:
    return {
        "hidden_states": make(*geometry.latent),
        "timestep": make.times,
        "encoder_hidden_states": make(geometry.text_tokens, config["caption_channels"]),
    }


def _lumina2(config: Mapping[str, Any], geometry: Geometry, make: _Maker) -> dict[str, Any]:
    return {
        "hidden_states": make(*geometry.latent),
        "timestep": make.times,
        "encoder_hidden_states": make(geometry.text_tokens, config["cap_feat_dim"]),
        "encoder_attention_mask": make.mask(geometry.text_tokens),
    }


def _wan(config: Mapping[str, Any], geometry: Geometry, make: _Maker) -> dict[str, Any]:
    return {
        "hidden_states": make(*geometry.latent),
        "timestep": make.times,
        "encoder_hidden_states": make(geometry.text_tokens, config["text_dim"]),
    }


def _unet(config: Mapping[str, Any], geometry: Geometry, make: _Maker) -> dict[str, Any]:
    given: dict[str, Any] = {
        "sample": make(*geometry.latent),
        "timestep": make.times,
        "encoder_hidden_states": make(CLIP_TOKENS, config["cross_attention_dim"]),
    }
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        given["added_cond_kwargs"] = {"text_embeds": make(pooled), "time_ids": make(6)}
    return given


_INPUTS: dict[str, Callable[[Mapping[str, Any], Geometry, _Maker], dict[str, Any]]] = {
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "QwenImageTransformer2DModel": _qwen_image,
    "ZImageTransformer2DModel": _z_image,
    "SanaTransformer2DModel": _sana,
    "Lumina2Transformer2DModel": _lumina2,
    "WanTransformer3DModel": _wan,
    "UNet2DConditionModel": _unet,
}
