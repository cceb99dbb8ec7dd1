"""A small image autoencoder of the kind that most image models decode with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["kl_autoencoder"]


def kl_autoencoder(
    *, latent_channels: int = 4, channels: tuple[int, ...] = (8, 16), scaling_factor: float = 1.5, shift_factor: float | None = 0.25
) -> AutoencoderKL:
    """An ``AutoencoderKL`` in evaluation mode, its weights from torch's global generator.

    Args:
        latent_channels: Of a latent.
        channels: Per resolution, multiples of 4; each entry after the first halves the picture.
        scaling_factor: Of a latent; another number than 1 shows whether it is used.
        shift_factor: Taken from a latent before it is scaled; Stable Diffusion 1 and XL have none.
    """
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).eval()
