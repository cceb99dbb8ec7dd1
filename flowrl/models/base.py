"""What the trainer asks of an image model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from flowrl.flow import Condition, VelocityField

__all__ = ["ImageModel", "ModelSource"]


class ImageModel(Protocol):
    """A text-conditioned velocity field with a way in (prompts) and a way out (pictures)."""

    @property
    def module(self) -> nn.Module:
        """The network that is trained; everything else is frozen, and all of it stays in evaluation mode."""
        ...

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of one latent, without the batch axis."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        ...

    def prepare(self, prompts: Sequence[str]) -> None:
        """Told once, before the first :meth:`encode`, of all texts that a run will ask for, so that a text encoder can go afterwards.

        A model that needs no such thing does nothing. Every process calls it, with the prompts that it will ask for.
        """
        ...

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Embeddings, one row per prompt, on the device; each text is encoded once."""
        ...

    def field(self, module: nn.Module | None = None) -> VelocityField:
        """The velocity field, guided if the model is.

        Args:
            module: What to call instead of the bare network: the wrapper that accelerate made of it.
        """
        ...

    def initial_state(self, noise: Tensor, t: float) -> Tensor:
        """The state at noise level ``t`` that standard normal noise stands for: the noise itself for a flow model, which starts at 1."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``(batch, 3, height, width)``, float32 in [0, 1], of latents ``(batch, *state_shape)``.

        A video model gives ``(batch, frame, 3, height, width)``.
        """
        ...

    def default_times(self, steps: int) -> Tensor:
        """The pipeline's own grid of noise levels, float32 ``(steps + 1,)`` from 1 to 0."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside this context the weights from before training act, also through a wrapper of the module."""
        ...

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimiser updates, float32, always in the same order."""
        ...

    def save_weights(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the trained weights as safetensors that diffusers loads.

        Args:
            folder: Made if it is not there.
            state: The module's complete state dict, where its own is sharded.
        """
        ...

    def load_weights(self, folder: Path) -> None:
        """Read what :meth:`save_weights` wrote, in place."""
        ...


class ModelSource(Protocol):
    """A model's configuration: light, comparable, and able to load the model."""

    def load(self, device: torch.device | str) -> ImageModel:
        """The model on a device."""
        ...
