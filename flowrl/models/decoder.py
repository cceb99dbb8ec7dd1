"""The decoder of a pipeline: in tiles, and away from the device between uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.errors import ConfigError
from flowrl.models.placement import Parked

if TYPE_CHECKING:
    import torch

    from flowrl.models.options import ResourceOptions

__all__ = ["parked_decoder", "tile_decoder"]

_OVERLAP = 4  # a quarter of a tile's side is blended with its neighbour, as in diffusers' defaults


def parked_decoder(options: ResourceOptions, pipeline: Any, device: torch.device) -> list[Parked]:
    """The pipeline's decoder if it is to wait on the CPU."""
    return [Parked(pipeline.vae, device)] if options.decoder == "offload" else []


def tile_decoder(vae: Any, side: int, factor: int) -> None:
    """Have an autoencoder of diffusers decode pictures larger than a tile in overlapping tiles.

    Args:
        vae: Any of diffusers' autoencoders that can.
        side: Of a tile in pixels.
        factor: Pixels per latent pixel and side.

    Raises:
        ConfigError: If the autoencoder cannot, or a quarter of the side is no whole number of latent pixels.
    """
    if side % (_OVERLAP * factor):
        raise ConfigError(f"decode_tile must be a multiple of {_OVERLAP * factor} for this decoder, got {side}")
    if hasattr(vae, "tile_sample_min_height"):
        stride = side - side // _OVERLAP
        vae.enable_tiling(
            tile_sample_min_height=side, tile_sample_min_width=side, tile_sample_stride_height=stride, tile_sample_stride_width=stride
        )
    elif hasattr(vae, "tile_latent_min_size"):
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // factor
    else:
        raise ConfigError(f"{type(vae).__name__} cannot decode in tiles; leave decode_tile out")
