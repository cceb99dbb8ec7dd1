"""Pictures as latent frames, through a small autoencoder that was trained beforehand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from flowrl.errors import ConfigError
from robot.learning.encoders import sensor_shape
from robot.world.latents import LatentCodec
from robot.world.vae import ConvolutionalVAE, FrameVAE, load_vae

if TYPE_CHECKING:
    from collections.abc import Mapping

    from robot.learning.encoders import SensorStats
    from robot.world.latents import LatentConfig

__all__ = ["ImageFrames"]


@dataclass(frozen=True, kw_only=True)
class ImageFrames:
    """One camera's pictures as latents of an autoencoder (latent video, as in arXiv:2605.07794, Sec. 3), of about unit variance.

    The codec carries the autoencoder's weights, so that a world-action model's file needs no other one.

    Attributes:
        sensor: Name of the pictures.
        vae: Of ``vae.safetensors``, or the folder that ``flowrl train`` wrote; None where the weights will be loaded afterwards.
        network: Sizes of the autoencoder where ``vae`` is None; the file knows its own.
        patch: Latent cells along each side of a token; more make fewer and longer tokens.

    Raises:
        ValueError: If ``patch`` < 1, or not exactly one of ``vae`` and ``network`` is given.
    """

    sensor: str
    vae: str | None = None
    network: ConvolutionalVAE | None = None
    patch: int = 1

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ValueError(f"ImageFrames.patch must be at least 1, got {self.patch}")
        if (self.vae is None) == (self.network is None):
            raise ValueError("ImageFrames needs a vae, such as runs/vae_pusht_images, which knows its own network; give one of the two")

    @property
    def needs(self) -> tuple[str, ...]:
        """See :class:`robot.world.LatentConfig`."""
        return (self.sensor,)

    def build(self, stats: Mapping[str, SensorStats]) -> LatentCodec:
        """See :class:`robot.world.LatentConfig`.

        Raises:
            CheckpointError: If there is no such autoencoder.
            ConfigError: If its pictures have another size, or its cells do not divide into tokens.
        """
        shape = sensor_shape(stats, self.sensor, 3)
        vae = load_vae(self.vae) if self.vae is not None else cast("ConvolutionalVAE", self.network).build(shape)
        if vae.shape != shape:
            raise ConfigError(f"the VAE {self.vae} was trained on pictures {vae.shape}, {self.sensor!r} shows {shape}; train one on these")
        if any(side % self.patch for side in vae.latent_shape[1:]):
            rows, columns = vae.latent_shape[1:]
            raise ConfigError(f"patch={self.patch} does not divide the {rows} x {columns} latent cells of {self.sensor!r}; 1 always does")
        return _ImageCodec(self.sensor, vae, self.patch)


class _ImageCodec(LatentCodec):
    def __init__(self, sensor: str, vae: FrameVAE, patch: int) -> None:
        channels, rows, columns = vae.latent_shape
        super().__init__((sensor,), rows * columns // patch**2, channels * patch**2)
        self.vae, self.patch = vae, patch

    def encode(self, frames: Mapping[str, Tensor]) -> Tensor:
        (pictures,) = (frames[name] for name in self.sensors)
        latents = nn.functional.pixel_unshuffle(self.vae.encode(pictures.float().flatten(0, 1)), self.patch)
        return latents.flatten(2).mT.unflatten(0, pictures.shape[:2])

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        _, rows, columns = self.vae.latent_shape
        grid = latents.flatten(0, 1).mT.unflatten(2, (rows // self.patch, columns // self.patch))
        pictures = self.vae.decode(nn.functional.pixel_shuffle(grid, self.patch))
        return {name: pictures.unflatten(0, latents.shape[:2]) for name in self.sensors}

    def kept(self, config: LatentConfig) -> LatentConfig:
        """See :class:`robot.world.LatentCodec`."""
        return replace(cast("ImageFrames", config), vae=None, network=self.vae.sizes)
