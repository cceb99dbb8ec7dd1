"""What the backbones share: the embedding of time, and what a backbone's configuration offers."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["TIME_SCALE", "NetworkConfig", "TimeEmbedding", "require_positive"]

TIME_SCALE = 1000.0
"""Networks see times in [0, TIME_SCALE], 0 being data, whatever a process's own time is."""

_LONGEST_PERIOD = 10_000.0


class NetworkConfig(Protocol):
    """A backbone as a config describes it."""

    def build(self, dof: int, horizon: int, features: int) -> nn.Module:
        """A network with fresh weights: ``(x, time, features) -> prediction``.

        ``x`` and the prediction are ``(batch, horizon, dof)``, ``time`` is ``(batch,)`` in [0, 1000], ``features`` ``(batch, feature)``.

        Args:
            dof: Dimensions of an action.
            horizon: Control steps of a chunk.
            features: Length of the observation's features.

        Raises:
            ConfigError: If the backbone cannot have these sizes.
        """
        ...


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time at geometric frequencies, then two layers."""

    def __init__(self, width: int) -> None:
        """Fresh weights.

        Args:
            width: Of the embedding, even.
        """
        super().__init__()
        half = width // 2
        self.register_buffer("frequencies", torch.exp(-math.log(_LONGEST_PERIOD) * torch.arange(half) / half), persistent=False)
        self.frequencies: Tensor
        self.layers = nn.Sequential(nn.Linear(2 * half, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, time: Tensor) -> Tensor:
        """Times in [0, 1000] of any shape ``(...)`` to ``(..., width)``."""
        angles = time.to(self.frequencies.dtype)[..., None] * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=-1))


def require_positive(component: object, *names: str) -> None:
    """Refuse sizes below 1.

    Args:
        component: A configuration.
        names: Of its fields that hold an integer or a tuple of integers.

    Raises:
        ValueError: If one is below 1, or a tuple is empty.
    """
    for name in names:
        value = getattr(component, name)
        sizes = value if isinstance(value, tuple) else (value,)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"{type(component).__name__}.{name} must be at least 1, got {value}")
