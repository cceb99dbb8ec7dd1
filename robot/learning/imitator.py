"""The module that accelerate wraps: encoder and network with the loss, so that every forward pass goes through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from flowrl.shapes import randn, seeded_generator
from robot.types import Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from robot.learning.encoders import ObservationEncoder
    from robot.learning.process import Process

__all__ = ["Draws", "Imitator"]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one loss, on the CPU.

    Attributes:
        noise: ``(batch, horizon, dof)``.
        time: The process's own times ``(batch,)``.
        augmentation: ``(batch, draws)`` of the encoder in [0, 1); None without augmentation.
    """

    noise: Tensor
    time: Tensor
    augmentation: Tensor | None = None

    @classmethod
    def fresh(cls, process: Process, shape: tuple[int, int, int], key: tuple[int, ...], *, augment: int = 0) -> Draws:
        """Determined by a key alone.

        Args:
            process: Draws the times.
            shape: ``(batch, horizon, dof)``.
            key: Integers that name the draw.
            augment: Uniform numbers per row.
        """
        generator = seeded_generator(*key)
        noise = randn(shape, generator, device="cpu")
        uniform = torch.rand(shape[0], augment, generator=generator) if augment else None
        return cls(noise=noise, time=process.times(shape[0], generator), augmentation=uniform)

    def part(self, rows: slice, device: torch.device) -> Draws:
        """Some rows, on a device."""
        augmentation = None if self.augmentation is None else self.augmentation[rows].to(device)
        return Draws(noise=self.noise[rows].to(device), time=self.time[rows].to(device), augmentation=augmentation)


class Imitator(nn.Module):
    """``(batch,)`` losses of normalised chunks, given what was seen."""

    def __init__(self, process: Process, encoder: ObservationEncoder, network: nn.Module) -> None:
        """Hold encoder and network."""
        super().__init__()
        self.encoder, self.network, self._process = encoder, network, process

    def forward(self, data: Tensor, seen: Mapping[str, Tensor], noise: Tensor, time: Tensor, augmentation: Tensor | None = None) -> Tensor:
        """See :class:`Imitator`."""
        features = self.encoder(Observation(seen), augmentation)
        network = cast("Callable[[Tensor, Tensor, Tensor], Tensor]", self.network)
        return self._process.error(network, data, noise, time, features)
