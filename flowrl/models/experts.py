"""Two networks, one for high noise and one for low, of which one is trained (Wan 2.2 A14B)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.errors import CheckpointError, ConfigError
from flowrl.flow import Condition, VelocityField, evaluations_per_state

if TYPE_CHECKING:
    from flowrl.shapes import Time

__all__ = ["ExpertGuidance", "TwoExperts", "by_rows", "experts_of"]


def by_rows(chosen: Tensor, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Tensor:
    """``first`` of the chosen rows and ``second`` of the others, in the rows' order; neither is called for no rows.

    Args:
        chosen: ``(batch,)`` booleans.
        first: Given the numbers of its rows.
        second: Likewise.
    """
    ours, others = chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]
    if not len(others):
        return first(ours)
    if not len(ours):
        return second(others)
    return torch.cat([first(ours), second(others)])[torch.cat([ours, others]).argsort()]


@dataclass(frozen=True, kw_only=True)
class TwoExperts:
    """Calls the expert that a row's noise level asks for.

    Attributes:
        other: The one that is not trained.
        boundary: Lowest timestep of the expert of high noise, in the scheduler's unit.
        trains_high: Whether the expert of high noise is the one that is trained.
    """

    other: nn.Module
    boundary: float
    trains_high: bool

    def is_high(self, timestep: Tensor) -> Tensor:
        """Which rows belong to the expert of high noise."""
        return timestep >= self.boundary

    def __call__(self, trained: nn.Module, timestep: Tensor, call: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Predictions of all rows.

        Args:
            trained: The trained expert or a wrapper of it.
            timestep: ``(batch,)``.
            call: Calls an expert for the rows of these numbers.

        Raises:
            ConfigError: If a gradient is wanted of the expert that is not trained.
        """
        ours = self.is_high(timestep) == self.trains_high
        if torch.is_grad_enabled() and not bool(ours.all()):
            side = ">=" if self.trains_high else "<"
            raise ConfigError(
                f"a step from timestep {timestep[~ours][0].item():.1f} shall be trained, but the trained expert acts at timesteps {side} "
                f"{self.boundary:g}; let the sampler train steps on that side alone, or set trained_expert"
            )
        return by_rows(ours, lambda rows: call(trained, rows), lambda rows: call(self.other, rows))


@dataclass(frozen=True, kw_only=True)
class ExpertGuidance:
    """One guidance at high noise, another below.

    Attributes:
        high: Acts where ``is_high`` says so.
        low: Acts elsewhere; costs the same.
        is_high: A ``(batch,)`` time to booleans.
    """

    high: VelocityField
    low: VelocityField
    is_high: Callable[[Tensor], Tensor]

    @property
    def evaluations(self) -> int:
        """Network evaluations per state."""
        return evaluations_per_state(self.high)

    def __call__(self, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        """The guided velocity; see :class:`flowrl.flow.VelocityField`."""
        time = torch.as_tensor(t, dtype=torch.float32, device=x_t.device).expand(len(x_t))

        def by(field: VelocityField) -> Callable[[Tensor], Tensor]:
            return lambda rows: field(x_t[rows], time[rows], condition[rows])

        return by_rows(self.is_high(time), by(self.high), by(self.low))


def experts_of(pipeline: Any, *, trains_high: bool) -> TwoExperts | None:
    """How the networks of a ``WanPipeline`` share the work; None where there is only one.

    Raises:
        CheckpointError: If an expert or the boundary between them is missing.
    """
    boundary, high, low = pipeline.config.boundary_ratio, pipeline.transformer, pipeline.transformer_2
    if high is None or (boundary is None) != (low is None):
        raise CheckpointError("a WanPipeline has one transformer, or two with a boundary_ratio; this one does not, save it whole")
    if boundary is None:
        return None
    boundary_step = boundary * pipeline.scheduler.config.num_train_timesteps
    return TwoExperts(other=low if trains_high else high, boundary=boundary_step, trains_high=trains_high)
