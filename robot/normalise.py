"""Affine normalisation of actions: ``raw = offset + scale·x``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NormStats"]

_SMALLEST_RANGE = 1e-8


@dataclass(frozen=True, eq=False)
class NormStats:
    """``raw = offset + scale·x`` per dimension: raw in physical units, ``x`` as the network sees it.

    Attributes:
        offset: ``(dof,)`` or a number.
        scale: ``(dof,)`` or a number, > 0.

    Raises:
        ValueError: If a scale is zero, negative or not finite, or the shapes differ.
    """

    offset: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        offset, scale = (torch.as_tensor(value, dtype=torch.float32).detach().cpu() for value in (self.offset, self.scale))
        if not bool((scale > 0).all() and torch.isfinite(scale).all() and torch.isfinite(offset).all()):
            raise ValueError(
                f"a normaliser needs finite offsets and scales > 0, got offset {offset.tolist()} and scale {scale.tolist()}; "
                "a dimension that never moves in the data has scale 0: give it scale 1"
            )
        if offset.ndim > 1 or scale.ndim > 1 or (offset.ndim == scale.ndim == 1 and offset.shape != scale.shape):
            raise ValueError(f"offset and scale must be numbers or (dof,), got shapes {tuple(offset.shape)} and {tuple(scale.shape)}")
        offset, scale = torch.broadcast_tensors(offset, scale)
        object.__setattr__(self, "offset", offset.clone())
        object.__setattr__(self, "scale", scale.clone())

    @classmethod
    def min_max(cls, values: Tensor) -> NormStats:
        """To [-1, 1] by the range of the data; a dimension that never moves keeps its unit.

        Args:
            values: ``(sample, dof)``.
        """
        return cls._between(values.amin(0), values.amax(0))

    @classmethod
    def quantiles(cls, values: Tensor, low: float = 0.01, high: float = 0.99) -> NormStats:
        """To [-1, 1] by two quantiles of the data (openpi's pi05 takes 1 % and 99 %).

        Args:
            values: ``(sample, dof)``.
            low: Of the lower end, in [0, 1).
            high: Of the upper end, in (low, 1].

        Raises:
            ValueError: If the quantiles are out of order.
        """
        if not 0 <= low < high <= 1:
            raise ValueError(f"quantiles must satisfy 0 <= low < high <= 1, got {low} and {high}")
        return cls._between(values.quantile(low, 0), values.quantile(high, 0))

    @classmethod
    def mean_std(cls, values: Tensor) -> NormStats:
        """To mean 0 and standard deviation 1; a dimension that never moves keeps its unit.

        Args:
            values: ``(sample, dof)``, at least two samples.
        """
        std = values.std(0)
        return cls(values.mean(0), torch.where(std > _SMALLEST_RANGE, std, torch.ones_like(std)))

    @classmethod
    def _between(cls, low: Tensor, high: Tensor) -> NormStats:
        half = (high - low) / 2
        return cls((high + low) / 2, torch.where(half > _SMALLEST_RANGE, half, torch.ones_like(half)))

    def normalise(self, raw: Tensor) -> Tensor:
        """Physical units to the network's, ``(..., dof)``."""
        return (raw - self.offset.to(raw)) / self.scale.to(raw)

    def unnormalise(self, x: Tensor) -> Tensor:
        """The network's units to physical ones, ``(..., dof)``."""
        return self.offset.to(x) + self.scale.to(x) * x
