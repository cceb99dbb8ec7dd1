"""A small variational autoencoder for pictures of one size, and the file that keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.errors import ConfigError
from flowrl.models.quiet import quiet_libraries
from flowrl.train.stages import autoencoder_loss
from robot.learning.blocks import require_positive
from robot.learning.files import FileKind, load_parts, module_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

__all__ = ["VAES", "ConvolutionalVAE", "FrameVAE", "VAERecipe", "load_vae", "save_vae"]

_AT_ONCE = 256  # pictures in one pass
_SMALLEST = 1e-6


@dataclass(frozen=True, kw_only=True)
class ConvolutionalVAE:
    """Sizes of a small autoencoder: diffusers' ``AutoencoderKL`` on pictures whose blocks of pixels are folded into channels first.

    Folding is what makes it quick on a CPU: no convolution runs at the picture's full resolution.

    Attributes:
        patch: Pixels along each side of a block that is folded into channels.
        channels: Of each resolution; each entry after the first halves the picture. A latent cell covers
            ``patch · 2^(len(channels) − 1)`` pixels along each side.
        latent_channels: Numbers of a latent cell.
        layers: Residual blocks per resolution.
        groups: Of the normalisations; divides every entry of ``channels``.

    Raises:
        ValueError: If a number is below 1, or ``groups`` does not divide the channels.
    """

    patch: int = 8
    channels: tuple[int, ...] = (32, 64)
    latent_channels: int = 8
    layers: int = 1
    groups: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "patch", "channels", "latent_channels", "layers", "groups")
        if any(count % self.groups for count in self.channels):
            raise ValueError(f"groups must divide every entry of channels, got {self.groups} and {self.channels}")

    @property
    def cell(self) -> int:
        """Pixels along each side of a latent cell."""
        return int(self.patch * 2 ** (len(self.channels) - 1))

    def build(self, shape: tuple[int, ...]) -> FrameVAE:
        """An autoencoder with fresh weights from torch's global generator.

        Args:
            shape: Of a picture, ``(channel, height, width)``.

        Raises:
            ConfigError: If the picture does not divide into latent cells.
        """
        if any(side % self.cell for side in shape[1:]):
            raise ConfigError(
                f"pictures of {shape[1]} x {shape[2]} pixels do not divide into latent cells of {self.cell} x {self.cell}; record them at "
                f"a multiple of {self.cell} (image_size of PushT), or choose another patch or number of channels"
            )
        return FrameVAE(self, shape)


class FrameVAE(nn.Module):
    """Pictures to latents of about unit variance, and back.

    Pictures are standardised with the mean picture and one spread for all pixels, so that what never changes costs nothing to learn.
    ``forward`` is the training loss.

    Attributes:
        sizes: Of its network.
        shape: Of a picture, ``(channel, height, width)``.
        latent_shape: ``(channel, row, column)``.
    """

    def __init__(self, sizes: ConvolutionalVAE, shape: tuple[int, ...]) -> None:
        """Fresh weights; statistics are those of :meth:`look_at` and :meth:`measure`."""
        from diffusers import AutoencoderKL

        super().__init__()
        self.sizes, self.shape = sizes, tuple(shape)
        self.latent_shape = (sizes.latent_channels, shape[1] // sizes.cell, shape[2] // sizes.cell)
        resolutions = len(sizes.channels)
        with quiet_libraries():
            self.network = AutoencoderKL(
                in_channels=shape[0] * sizes.patch**2,
                out_channels=shape[0] * sizes.patch**2,
                down_block_types=("DownEncoderBlock2D",) * resolutions,
                up_block_types=("UpDecoderBlock2D",) * resolutions,
                block_out_channels=sizes.channels,
                layers_per_block=sizes.layers,
                latent_channels=sizes.latent_channels,
                norm_num_groups=sizes.groups,
                use_quant_conv=False,
                use_post_quant_conv=False,
                mid_block_add_attention=False,
            )
        for name, values in {
            "mean": torch.zeros(self.shape),
            "spread": torch.ones(()),
            "latent_mean": torch.zeros(sizes.latent_channels, 1, 1),
            "latent_std": torch.ones(sizes.latent_channels, 1, 1),
        }.items():
            self.register_buffer(name, values)
        self.mean: Tensor
        self.spread: Tensor
        self.latent_mean: Tensor
        self.latent_std: Tensor

    def forward(self, pictures: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
        """Training loss of standardised pictures, a scalar; see :func:`flowrl.train.stages.autoencoder_loss`.

        Args:
            pictures: ``(batch, channel, height, width)`` in [0, 1].
            noise: Standard normal ``(batch, *latent_shape)``.
            kl_weight: Of the latents' KL divergence to N(0, 1).
        """
        return autoencoder_loss(self._posterior(pictures), noise, self._decoded, self._standardised(pictures), kl_weight)

    def encode(self, pictures: Tensor) -> Tensor:
        """Normalised latents ``(batch, *latent_shape)`` of pictures in [0, 1]: the mean of what the encoder says."""
        return (self._posterior(pictures).mode() - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in [0, 1] from normalised latents."""
        return (self._decoded(latents * self.latent_std + self.latent_mean) * self.spread + self.mean).clamp(0, 1)

    @torch.no_grad()
    def look_at(self, pictures: Tensor) -> None:
        """Take the mean picture and the spread around it from demonstrations; before training.

        Args:
            pictures: uint8 ``(frame, channel, height, width)``.
        """
        parts = pictures.split(_AT_ONCE)
        self.mean = sum((_unit(part).sum(0) for part in parts), torch.zeros_like(self.mean)) / len(pictures)
        square = sum(float((_unit(part) - self.mean).square().sum(dtype=torch.float64)) for part in parts) / pictures.numel()
        self.spread = torch.tensor(max(square**0.5, _SMALLEST), device=self.mean.device)

    @torch.no_grad()
    def measure(self, pictures: Tensor) -> None:
        """Take mean and spread of each latent channel from demonstrations; after training.

        Args:
            pictures: uint8 ``(frame, channel, height, width)``.
        """
        latents = torch.cat([self._posterior(_unit(part)).mode() for part in pictures.split(_AT_ONCE)])
        self.latent_mean = latents.mean((0, 2, 3))[:, None, None]
        self.latent_std = latents.std((0, 2, 3)).clamp(min=_SMALLEST)[:, None, None]

    def _standardised(self, pictures: Tensor) -> Tensor:
        return (pictures - self.mean) / self.spread

    def _posterior(self, pictures: Tensor) -> DiagonalGaussianDistribution:
        folded = nn.functional.pixel_unshuffle(self._standardised(pictures), self.sizes.patch)
        return self.network.encode(folded).latent_dist

    def _decoded(self, latents: Tensor) -> Tensor:
        """Standardised pictures from the network's own latents."""
        return nn.functional.pixel_shuffle(self.network.decode(latents).sample, self.sizes.patch)


@dataclass(frozen=True, kw_only=True)
class VAERecipe:
    """All that an autoencoder is besides its weights.

    Attributes:
        network: Its sizes.
        shape: Of a picture, ``(channel, height, width)``.
        sensor: Whose pictures it was trained on.
        name: For reports.
    """

    network: ConvolutionalVAE
    shape: tuple[int, ...]
    sensor: str
    name: str = ""


VAES = FileKind(name="vae.safetensors", noun="VAE of frames", key="flowrl.vae", recipe=VAERecipe)


def save_vae(path: Path, recipe: VAERecipe, vae: FrameVAE, training: Mapping[str, Any] | None = None) -> Path:
    """Write an autoencoder with its statistics, whole or not at all.

    Args:
        path: The file.
        recipe: What it is.
        vae: Its weights and statistics.
        training: JSON-like facts about where it came from: ``config``, ``data``, ``steps``.

    Raises:
        CheckpointError: If it cannot be written.
    """
    return VAES.save(path, recipe, module_tensors({"vae": vae}), training)


def load_vae(path: str | Path, device: torch.device | str = "cpu") -> FrameVAE:
    """Read an autoencoder; its weights are frozen.

    Args:
        path: Of ``vae.safetensors``, or the folder that ``flowrl train`` wrote, or a bundled one (``assets/…``).
        device: Where it will act.

    Raises:
        CheckpointError: If the file is missing, truncated, altered, of a newer version or no autoencoder.
    """
    path = VAES.find(path)
    recipe, tensors = VAES.load(path)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and thrown away
        vae: FrameVAE = recipe.network.build(recipe.shape)
    load_parts(path, tensors, {"vae": vae}, device, VAES.noun)
    return vae


def _unit(pictures: Tensor) -> Tensor:
    return pictures.float() / 255
