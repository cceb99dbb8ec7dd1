"""The Gaussian between two times of a sampler: what drew a sample also scores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.distributions import Normal

from flowrl.errors import close_match
from flowrl.shapes import RandomSource, randn, state_mean, state_sum

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reduction", "Transition"]

Reduction = Literal["mean", "sum"]
_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"mean": state_mean, "sum": state_sum}


@dataclass(frozen=True)
class Transition:
    """``x_s ~ N(mean, std²·I)``, given the state at an earlier (noisier) time.

    Attributes:
        mean: ``(batch, ...)``, float32 at least.
        std: Broadcasts over ``mean``; 0 for a noise-free step, which can be drawn from but not scored.

    Raises:
        ValueError: If ``std`` does not broadcast to the shape of ``mean``.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if torch.broadcast_shapes(self.mean.shape, self.std.shape) != self.mean.shape:
            raise ValueError(f"std of shape {tuple(self.std.shape)} does not broadcast over a mean of shape {tuple(self.mean.shape)}")

    def sample(self, generator: RandomSource = None, *, noise: Tensor | None = None) -> Tensor:
        """Draw ``x_s``.

        Args:
            generator: Source of the noise; a sequence of generators splits the batch evenly.
            noise: Standard normal noise to use instead, ``(batch, ...)``.
        """
        if noise is None:
            noise = randn(self.mean.shape, generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    def log_prob(self, x_s: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Log-density of a stored state, nats.

        Args:
            x_s: ``(batch, ...)``, as stored (round first, then score).
            reduction: ``"mean"`` over the state's axes (nats per dimension: what image papers clip at 1e-4), or ``"sum"`` (the joint).

        Returns:
            ``(batch,)``.

        Raises:
            ValueError: If the transition is noise-free somewhere, the shapes differ or the reduction is unknown.
        """
        if x_s.shape != self.mean.shape:
            raise ValueError(f"x_s must have the mean's shape {tuple(self.mean.shape)}, got {tuple(x_s.shape)}")
        return self._reduced(self._normal().log_prob(x_s), reduction)

    def kl(self, other: Transition, reduction: Reduction = "mean") -> Tensor:
        """``KL(self ‖ other)``, nats; for equal std it is ``(mean − other.mean)² / (2·std²)``.

        Args:
            other: A transition over the same state.
            reduction: ``"mean"`` (per dimension) or ``"sum"`` over the state's axes.

        Returns:
            ``(batch,)``.

        Raises:
            ValueError: If either is noise-free somewhere, the shapes differ or the reduction is unknown.
        """
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"transitions must be over the same state, got shapes {tuple(self.mean.shape)} and {tuple(other.mean.shape)}")
        mine, theirs = self._normal(), other._normal()
        scale, shift = mine.scale / theirs.scale, (mine.loc - theirs.loc) / theirs.scale
        # torch's kl_divergence adds 1 and takes it away: in float32 a shift below 2e-4 std would have a KL of 0.
        return self._reduced(shift.square() / 2 + ((scale.square() - 1) / 2 - scale.log()), reduction)

    def _normal(self) -> Normal:
        if not bool((self.std > 0).all()):
            raise ValueError(
                "a noise-free transition (std = 0) has no density; score only stochastic steps (leave out ODE steps and CPS's last step)"
            )
        return Normal(self.mean, self.std.expand_as(self.mean), validate_args=False)

    @staticmethod
    def _reduced(values: Tensor, reduction: str) -> Tensor:
        if reduction not in _REDUCTIONS:
            raise ValueError(f"unknown reduction {reduction!r}{close_match(reduction, _REDUCTIONS)}")
        return _REDUCTIONS[reduction](values)
