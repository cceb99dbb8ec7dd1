"""How predicted frames and an action chunk make one state whose tokens have times of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.shapes import Time, randn

if TYPE_CHECKING:
    from flowrl.shapes import RandomSource

__all__ = ["Layout"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One state ``(batch, frame + 1, width)``: a row for each predicted frame, then one for the whole chunk, zero-padded to one width.

    So a time per frame is an ordinary time of flowrl, ``(batch, frame + 1)``, and samplers and dynamics need not know what the rows mean.

    Attributes:
        frames: Predicted frames, >= 1.
        tokens: Latent tokens of a frame.
        channels: Numbers of a latent token.
        horizon: Control steps of the chunk.
        dof: Dimensions of an action.

    Raises:
        ValueError: If a size is below 1.
    """

    frames: int
    tokens: int
    channels: int
    horizon: int
    dof: int

    def __post_init__(self) -> None:
        if min(self.frames, self.tokens, self.channels, self.horizon, self.dof) < 1:
            raise ValueError(f"every size of a layout must be at least 1, got {self}")

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return max(self.tokens * self.channels, self.horizon * self.dof)

    @property
    def shape(self) -> tuple[int, int]:
        """Of one state, ``(frame + 1, width)``."""
        return self.frames + 1, self.width

    def pack(self, latents: Tensor, actions: Tensor) -> Tensor:
        """One state of both.

        Args:
            latents: ``(batch, frame, token, channel)``.
            actions: ``(batch, horizon, dof)``.

        Raises:
            ValueError: If a shape is not the layout's.
        """
        batch = len(actions)
        wanted = (batch, self.frames, self.tokens, self.channels), (batch, self.horizon, self.dof)
        if (tuple(latents.shape), tuple(actions.shape)) != wanted:
            raise ValueError(
                f"latents and actions must be {wanted[0]} and {wanted[1]}, got {tuple(latents.shape)} and {tuple(actions.shape)}"
            )
        x = actions.new_zeros(batch, *self.shape)
        x[:, :-1, : self.tokens * self.channels] = latents.flatten(2)
        x[:, -1, : self.horizon * self.dof] = actions.flatten(1)
        return x

    def latents(self, x: Tensor) -> Tensor:
        """The frames of a state, ``(batch, frame, token, channel)``."""
        return x[:, :-1, : self.tokens * self.channels].unflatten(-1, (self.tokens, self.channels))

    def actions(self, x: Tensor) -> Tensor:
        """The chunk of a state, ``(batch, horizon, dof)``."""
        return x[:, -1, : self.horizon * self.dof].unflatten(-1, (self.horizon, self.dof))

    def noise(self, batch: int, generator: RandomSource = None, *, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal noise, zero where the state is padding, ``(batch, frame + 1, width)``.

        Args:
            batch: Rows.
            generator: One, or one per row.
            device: Where it lives.
        """
        numbers = self.frames * self.tokens * self.channels
        flat = randn((batch, numbers + self.horizon * self.dof), generator, device=device)
        latents = flat[:, :numbers].reshape(batch, self.frames, self.tokens, self.channels)
        return self.pack(latents, flat[:, numbers:].reshape(batch, self.horizon, self.dof))

    def times(self, frames: Tensor, action: Time) -> Tensor:
        """Times of a state's rows, ``(batch, frame + 1)``.

        Args:
            frames: ``(batch, frame)``.
            action: ``()`` or ``(batch,)``.
        """
        last = torch.as_tensor(action, dtype=frames.dtype, device=frames.device).expand(len(frames))
        return torch.cat([frames, last[:, None]], dim=1)

    def row_times(self, t: Time, like: Tensor) -> Tensor:
        """Any time of a state, ``()``, ``(batch,)`` or ``(batch, frame + 1)``, as ``(batch, frame + 1)``."""
        time = torch.as_tensor(t, dtype=like.dtype, device=like.device)
        return (time[:, None] if time.ndim == 1 else time).expand(len(like), self.frames + 1)
