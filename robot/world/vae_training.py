"""Training a small autoencoder on the pictures of demonstrations, as a config says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from flowrl.errors import ConfigError
from flowrl.shapes import randn, seeded_generator
from flowrl.train import AdamW
from flowrl.train.grids import save_png
from robot.demonstrations.data import DemonstrationSource
from robot.learning.files import FileKind
from robot.learning.lesson import Curve, Lesson, Training
from robot.learning.material import Cut, Material
from robot.world.imagine import picture_rows
from robot.world.vae import VAES, ConvolutionalVAE, FrameVAE, VAERecipe, save_vae

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ImageVAE"]

_PICTURE_AXES = 3
_MEASURED, _DRAWN, _LOOKED_AT = 512, 8, 4096  # pictures
RECONSTRUCTIONS = "reconstructions.png"


@dataclass(frozen=True, kw_only=True)
class ImageVAE(Training):
    """Train an autoencoder of frames; :class:`robot.learning.lesson.Training` has the fields that are common to such jobs.

    Its latents are what :class:`robot.world.ImageFrames` makes of pictures. It leaves ``vae.safetensors``, with the latents' statistics,
    and ``reconstructions.png``: held-out pictures above what comes back.

    Attributes:
        demonstrations: Whose pictures.
        sensor: Name of the pictures.
        network: Its sizes.
        kl_weight: Weight of the KL divergence to N(0, 1), nats per latent dimension, against the squared error of standardised pixels.

    Raises:
        ConfigError: If a number is out of range.
    """

    title: ClassVar[str] = "autoencoder of frames"
    kind: ClassVar[FileKind] = VAES
    curves: ClassVar[tuple[Curve, ...]] = (
        Curve(
            title="Unexplained share",
            note="Squared error of reconstructed pictures on episodes that were held out, as a share of that of the mean picture: 1 is no "
            "better than the mean picture, 0 is perfect.",
            lines={"eval/unexplained": "held-out pictures"},
        ),
    )
    shown: ClassVar[tuple[str, ...]] = ("sensor", "network", "kl_weight", "seed")
    pictures: ClassVar[Mapping[str, str]] = {RECONSTRUCTIONS: "Pictures of held-out episodes, and what comes back."}

    demonstrations: DemonstrationSource
    sensor: str = "image"
    network: ConvolutionalVAE = field(default_factory=ConvolutionalVAE)
    kl_weight: float = 1.0e-4
    steps: int = 3000
    batch_size: int = 32
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2.0e-3, schedule="cosine", warmup_steps=50))
    ema_decay: float | None = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kl_weight >= 0:
            raise ConfigError(f"kl_weight must be >= 0, got {self.kl_weight}; 1.0e-4 is usual")

    def lesson(self) -> Lesson:
        """See :class:`robot.learning.lesson.Training`."""
        return _Reconstruction(self)


class _Reconstruction(Lesson):
    """Pictures, and the autoencoder that gives them back."""

    def __init__(self, job: ImageVAE) -> None:
        material = Material.of(job.demonstrations.load(), Cut(sensors=(job.sensor,), horizon=1, history=1), job)
        shape = material.sensors[job.sensor].shape
        self._train = material.train.frames[job.sensor]
        if len(shape) != _PICTURE_AXES or self._train.dtype != torch.uint8:
            raise ConfigError(f"an autoencoder of frames needs pictures, uint8 (height, width, channel); {job.sensor!r} shows {shape}")
        self._job, self._recipe = job, VAERecipe(network=job.network, shape=shape, sensor=job.sensor, name=job.called)
        self._validation = None if material.validation is None else material.validation.frames[job.sensor]
        self.facts, self.examples = material.facts, len(self._train)

    def begin(self, device: torch.device) -> FrameVAE:
        """See :class:`Lesson`."""
        vae = self._job.network.build(self._recipe.shape).to(device)
        self._train = self._train.to(device)
        vae.look_at(self._some(self._train))
        return vae

    def loss(self, module: nn.Module, rows: Tensor, part: slice, step: int) -> Tensor:
        """See :class:`Lesson`."""
        pictures = self._train[rows.to(self._train.device)].float() / 255
        cell, (_, height, width) = self._job.network.cell, self._recipe.shape
        shape = (self._job.batch_size, self._job.network.latent_channels, height // cell, width // cell)
        noise = randn(shape, seeded_generator(self._job.seed, 2, step), device="cpu")[part].to(pictures.device)
        return cast("Tensor", module(pictures, noise, self._job.kl_weight))

    @torch.no_grad()
    def validate(self, module: nn.Module) -> dict[str, float]:
        """See :class:`Lesson`; draws ``reconstructions.png`` too."""
        if self._validation is None:
            return {}
        vae = cast("FrameVAE", module).eval()
        order = torch.randperm(len(self._validation), generator=seeded_generator(self._job.seed, 3))[:_MEASURED]
        pictures = self._validation[order].to(vae.mean.device).float() / 255
        noise = randn((len(pictures), *vae.latent_shape), seeded_generator(self._job.seed, 4), device=pictures.device)
        loss, back = float(vae(pictures, noise, self._job.kl_weight)), vae.decode(vae.encode(pictures))
        save_png(picture_rows({"real": pictures[:_DRAWN], "back": back[:_DRAWN]}), self._job.folder / RECONSTRUCTIONS)
        vae.train()
        return {"loss": loss, "unexplained": float((back - pictures).square().mean() / (pictures - vae.mean).square().mean())}

    @torch.no_grad()
    def save(self, path: Path, module: nn.Module, training: Mapping[str, Any]) -> None:
        """See :class:`Lesson`."""
        vae = cast("FrameVAE", module)
        vae.eval()
        vae.measure(self._some(self._train))
        save_vae(path, self._recipe, vae, training)
        vae.train()

    def _some(self, pictures: Tensor) -> Tensor:
        order = torch.randperm(len(pictures), generator=seeded_generator(self._job.seed, 5))[:_LOOKED_AT]
        return pictures[order.to(pictures.device)]
