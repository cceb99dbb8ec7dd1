"""Schedules of frames and actions as a config names them; how many frames there are, the model says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from samplers.per_token import PerTokenSchedule

if TYPE_CHECKING:
    from robot.world.denoising import Schedule

__all__ = [
    "ActionFirstSchedule",
    "ConstantSchedule",
    "HalfSchedule",
    "MaskedSchedule",
    "PyramidSchedule",
    "ScheduleConfig",
    "SharedSchedule",
    "VideoFirstSchedule",
]


class ScheduleConfig(Protocol):
    """A schedule as a config describes it."""

    @property
    def steps(self) -> int:
        """Denoising steps."""
        ...

    def build(self, frames: int) -> Schedule:
        """The schedule.

        Args:
            frames: That a model predicts.

        Raises:
            ValueError: If it does not fit so many.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _Steps(ABC):
    """A grid, checked when the config is read.

    Attributes:
        steps: Denoising steps.
        shift: Of the grid towards noise, see :func:`flowrl.flow.shift_time`; 1 is linear.
    """

    steps: int = 5
    shift: float = 1.0

    def __post_init__(self) -> None:
        self.build(1)

    @abstractmethod
    def build(self, frames: int) -> Schedule:
        """See :class:`ScheduleConfig`."""


@dataclass(frozen=True, kw_only=True)
class SharedSchedule(_Steps):
    """Frames and actions at one time: the usual sampler.

    Attributes:
        steps: Denoising steps.
        shift: Of the grid towards noise, see :func:`flowrl.flow.shift_time`; 1 is linear.

    Raises:
        ValueError: If a number is out of range.
    """

    def build(self, frames: int) -> PerTokenSchedule:
        """See :class:`ScheduleConfig`."""
        return PerTokenSchedule.shared(self.steps, frames, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class MaskedSchedule(_Steps):
    """Frames stay noise, so that actions are drawn as if nothing were imagined; fields as of :class:`SharedSchedule`."""

    def build(self, frames: int) -> PerTokenSchedule:
        """See :class:`ScheduleConfig`."""
        return PerTokenSchedule.masked(self.steps, frames, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class HalfSchedule(_Steps):
    """Frames go half as fast as actions and end half noisy; fields as of :class:`SharedSchedule`."""

    def build(self, frames: int) -> PerTokenSchedule:
        """See :class:`ScheduleConfig`."""
        return PerTokenSchedule.half(self.steps, frames, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class VideoFirstSchedule(_Steps):
    """Frames are imagined first, then actions follow from them (UWM, arXiv:2504.02792).

    Attributes:
        steps: Denoising steps of both together, at least 2.
        shift: Of both grids.
        share: Of the steps that the frames take, in (0, 1).

    Raises:
        ValueError: If a number is out of range.
    """

    share: float = 0.5

    def build(self, frames: int) -> PerTokenSchedule:
        """See :class:`ScheduleConfig`."""
        return PerTokenSchedule.video_first(self.steps, frames, share=self.share, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class ActionFirstSchedule(_Steps):
    """Actions are drawn first, then frames show what they lead to.

    Attributes:
        steps: Denoising steps of both together, at least 2.
        shift: Of both grids.
        share: Of the steps that the actions take, in (0, 1).

    Raises:
        ValueError: If a number is out of range.
    """

    share: float = 0.5

    def build(self, frames: int) -> PerTokenSchedule:
        """See :class:`ScheduleConfig`."""
        return PerTokenSchedule.action_first(self.steps, frames, share=self.share, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class PyramidSchedule(_Steps):
    """Nearer frames first (Diffusion Forcing, arXiv:2407.01392).

    Attributes:
        steps: Denoising steps.
        shift: Of the grid.
        lag: How far the last frame is behind the first, in [0, 1).

    Raises:
        ValueError: If a number is out of range.
    """

    lag: float = 0.5

    def build(self, frames: int) -> PerTokenSchedule:
        """See :class:`ScheduleConfig`."""
        return PerTokenSchedule.pyramid(self.steps, frames, lag=self.lag, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule(_Steps):
    """Every frame at a pace of its own.

    Attributes:
        multipliers: Of the shared steps, one a frame, in [0, 2]: 0 masks, 1 keeps pace with the actions.
        steps: Denoising steps.
        shift: Of the grid.

    Raises:
        ValueError: If a number is out of range, or there is not one multiplier a frame.
    """

    multipliers: tuple[float, ...]

    def __post_init__(self) -> None:
        self.build(len(self.multipliers))

    def build(self, frames: int) -> PerTokenSchedule:
        """See :class:`ScheduleConfig`."""
        if len(self.multipliers) != frames:
            raise ValueError(
                f"ConstantSchedule has {len(self.multipliers)} multipliers, but the model predicts {frames} frames; give one for each"
            )
        return PerTokenSchedule.constant(self.multipliers, self.steps, shift=self.shift)
