"""Schedules with a time per token: each latent frame is denoised at a pace of its own (Diffusion Forcing, arXiv:2407.01392)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from flowrl.flow import shifted_times
from samplers.checks import check_at_least

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LARGEST_MULTIPLIER", "PerTokenSchedule", "advanced"]

LARGEST_MULTIPLIER = 2.0
"""No token moves faster than this many shared steps in one (NoiseGate, arXiv:2605.07794)."""

_AXES = ("step", "batch", "token")


class _UnderWay(Protocol):
    """What a fixed schedule needs to know of a sample under way."""

    @property
    def step(self) -> int: ...

    def __len__(self) -> int: ...


def advanced(t: Tensor, multiplier: Tensor, shared: Tensor, step: int) -> Tensor:
    """One step of a token's time: ``max(t − r·(T_k − T_{k+1}), 0)`` (NoiseGate, arXiv:2605.07794).

    Computed as ``T_{k+1}`` plus how far the token lags behind the shared grid, so that ``r = 1`` keeps to the grid to the last bit.

    Args:
        t: Times now ``(..., token)``.
        multiplier: ``r >= 0``, broadcasts over ``t``: 0 stays, 1 keeps pace with the shared grid.
        shared: The shared grid ``T``, ``(steps + 1,)``, from 1 to 0.
        step: ``k``.

    Returns:
        Times after the step, in [0, ``t``].
    """
    lag = t - shared[step] + (1 - multiplier) * (shared[step] - shared[step + 1])
    later = torch.minimum((shared[step + 1] + lag).clamp_min(0), t)
    return torch.where(multiplier == 0, t, later)  # a token that stays does so to the last bit


@dataclass(frozen=True, eq=False)
class PerTokenSchedule:
    """Fixed times of every token over the steps, and the times of everything else, such as the actions of a world-action model.

    A token that stays at 1 is masked: it is noise, and tells the others nothing. A token need not reach 0.

    Attributes:
        values: ``(steps + 1, batch, token)``, from 1, never increasing, >= 0; a batch of 1 serves every row.
        action: ``(steps + 1,)`` times of what is no token, from 1 to 0; None for the linear grid.

    Raises:
        ValueError: If the times are not finite, do not begin at 1, increase or leave [0, 1], or the two differ in steps.
    """

    values: Tensor
    action: Tensor | None = None

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.values, dtype=torch.float64)
        if values.ndim != len(_AXES) or not values.numel():
            raise ValueError(f"times per token have the axes ({', '.join(_AXES)}) with a length of at least 1, got {tuple(values.shape)}")
        check_at_least("steps", len(values) - 1, 1, "a schedule has a beginning and an end")
        _check_falling("the times of a token", values)
        action = shifted_times(len(values) - 1) if self.action is None else torch.as_tensor(self.action, dtype=torch.float64)
        if action.shape != values.shape[:1]:
            raise ValueError(f"action must hold {len(values)} times, one more than there are steps, got shape {tuple(action.shape)}")
        _check_falling("the times of the actions", action)
        if action[-1] != 0:
            raise ValueError(f"the times of the actions must end at 0, or what is executed would still be noisy; got {action.tolist()}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "action", action)

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return len(self.values) - 1

    @property
    def tokens(self) -> int:
        """Tokens with times of their own."""
        return self.values.shape[2]

    def times(self) -> Tensor:
        """Noise levels, float64 ``(steps + 1, batch, token)``, from 1, never increasing."""
        return self.values

    def next(self, state: _UnderWay) -> tuple[Tensor, Tensor]:
        """Where a sample under way goes in its next step.

        Args:
            state: Has ``step``, the steps taken, and as many rows as the sample.

        Returns:
            Times of the tokens ``(batch, token)``, and of the actions ``()``.

        Raises:
            ValueError: If the schedule has ended, or is of another batch.
        """
        if state.step >= self.steps:
            raise ValueError(f"the schedule has {self.steps} steps, all of which are taken")
        if self.values.shape[1] not in (1, len(state)):
            raise ValueError(f"the schedule is of {self.values.shape[1]} rows, the sample has {len(state)}")
        return self.values[state.step + 1].expand(len(state), -1), cast("Tensor", self.action)[state.step + 1]

    @classmethod
    def shared(cls, steps: int, tokens: int, *, shift: float = 1.0) -> PerTokenSchedule:
        """All tokens and the actions at one time.

        Args:
            steps: Denoising steps, >= 1.
            tokens: Tokens, >= 1.
            shift: Of the grid, see :func:`flowrl.flow.shift_time`.
        """
        return cls.constant(1.0, steps, tokens, shift=shift)

    @classmethod
    def masked(cls, steps: int, tokens: int, *, shift: float = 1.0) -> PerTokenSchedule:
        """Tokens stay at 1: the actions are drawn as if nothing were imagined; see :meth:`shared`."""
        return cls.constant(0.0, steps, tokens, shift=shift)

    @classmethod
    def half(cls, steps: int, tokens: int, *, shift: float = 1.0) -> PerTokenSchedule:
        """Tokens go half as fast as the actions and end at 0.5; see :meth:`shared`."""
        return cls.constant(0.5, steps, tokens, shift=shift)

    @classmethod
    def constant(
        cls, multipliers: Sequence[float] | float, steps: int, tokens: int | None = None, *, shift: float = 1.0
    ) -> PerTokenSchedule:
        """Every token at its own constant pace.

        Args:
            multipliers: Of the shared steps, in [0, 2]: one a token, or a number for all of them.
            steps: Denoising steps, >= 1.
            tokens: How many there are; needed with a number.
            shift: See :meth:`shared`.

        Raises:
            ValueError: If there are none or not ``tokens`` of them, or one lies outside [0, 2].
        """
        if isinstance(multipliers, int | float):
            multipliers = (float(multipliers),) * (tokens or 0)
        if len(multipliers) < 1 or tokens not in (None, len(multipliers)):
            raise ValueError(f"give one multiplier per token, or a number and how many tokens; got {multipliers} and tokens={tokens}")
        if not all(0 <= r <= LARGEST_MULTIPLIER for r in multipliers):
            raise ValueError(
                f"multipliers must lie in [0, {LARGEST_MULTIPLIER:g}], got {tuple(multipliers)}; 1 keeps pace with the actions"
            )
        shared, paces = shifted_times(steps, shift), torch.tensor(multipliers, dtype=torch.float64)
        times = [torch.ones(1, len(paces), dtype=torch.float64)]
        for step in range(steps):
            times.append(advanced(times[-1], paces, shared, step))
        return cls(torch.stack(times), shared)

    @classmethod
    def video_first(cls, steps: int, tokens: int, *, share: float = 0.5, shift: float = 1.0) -> PerTokenSchedule:
        """Tokens are denoised first, while the actions wait, then the actions.

        Args:
            steps: Denoising steps of both together, >= 2.
            tokens: Tokens, >= 1.
            share: Of the steps that the tokens take, in (0, 1); at least one step is left to each.
            shift: Of both grids.
        """
        first, then = _two_grids(steps, share, shift)
        return cls(first[:, None, None].expand(-1, 1, tokens), then)

    @classmethod
    def action_first(cls, steps: int, tokens: int, *, share: float = 0.5, shift: float = 1.0) -> PerTokenSchedule:
        """The actions are denoised first, while the tokens are masked, then the tokens; ``share`` is the actions' part of the steps."""
        first, then = _two_grids(steps, share, shift)
        return cls(then[:, None, None].expand(-1, 1, tokens), first)

    @classmethod
    def pyramid(cls, steps: int, tokens: int, *, lag: float = 0.5, shift: float = 1.0) -> PerTokenSchedule:
        """Nearer tokens first: each begins later than the one before it (Diffusion Forcing, arXiv:2407.01392, Fig. 2).

        Args:
            steps: Denoising steps, >= 1.
            tokens: Tokens, >= 1.
            lag: Part of the way that the last token has not gone when the first arrives, in [0, 1): 0 is the shared schedule.
            shift: Of the grid.

        Raises:
            ValueError: If ``lag`` lies outside [0, 1).
        """
        if not 0 <= lag < 1:
            raise ValueError(f"lag must lie in [0, 1), got {lag}; 0 is the shared schedule")
        check_at_least("tokens", tokens, 1, "it is the number of latent frames")
        shared = shifted_times(steps, shift)
        delays = torch.linspace(0, lag, tokens, dtype=torch.float64) if tokens > 1 else torch.zeros(1, dtype=torch.float64)
        progress = ((1 - shared)[:, None] - delays) / (1 - lag)
        return cls((1 - progress.clamp(0, 1))[:, None], shared)

    @classmethod
    def from_increments(cls, increments: Tensor, action: Tensor | None = None) -> PerTokenSchedule:
        """Times that fall from 1 by given increments, no further than 0.

        Args:
            increments: ``(steps, batch, token)`` or ``(steps, token)``, >= 0: how much noise each step takes away.
            action: See :class:`PerTokenSchedule`.

        Raises:
            ValueError: If an increment is negative or not finite, or the axes are others.
        """
        given = torch.as_tensor(increments, dtype=torch.float64)
        given = given[:, None] if given.ndim == len(_AXES) - 1 else given
        if given.ndim != len(_AXES):
            raise ValueError(f"increments have the axes ({', '.join(_AXES)}) or (step, token), got shape {tuple(given.shape)}")
        if not bool((torch.isfinite(given) & (given >= 0)).all()):
            raise ValueError("increments must be finite and >= 0: noise is taken away, never put back")
        times = 1 - torch.cat([torch.zeros_like(given[:1]), given.cumsum(0)])
        return cls(times.clamp_min(0), action)


def _two_grids(steps: int, share: float, shift: float) -> tuple[Tensor, Tensor]:
    """A grid over the first steps that then stays at 0, and one that stays at 1 and then falls."""
    check_at_least("steps", steps, 2, "one for each of the two streams")
    if not 0 < share < 1:
        raise ValueError(f"share must lie inside (0, 1), got {share}")
    first = min(max(math.floor(share * steps + 0.5), 1), steps - 1)
    early, late = shifted_times(first, shift), shifted_times(steps - first, shift)
    return torch.cat([early, early.new_zeros(steps - first)]), torch.cat([late.new_ones(first), late])


def _check_falling(what: str, times: Tensor) -> None:
    if not bool(torch.isfinite(times).all() and (times[0] == 1).all() and (times.diff(dim=0) <= 0).all() and (times >= 0).all()):
        raise ValueError(f"{what} must begin at 1 and never increase nor fall below 0, got {times.tolist()}")
