"""Members side by side: each asked in its own coordinates about one composed state, bound to one observation."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.errors import NonFiniteError
from flowrl.flow import PREDICTIONS
from flowrl.shapes import float_dtype
from robot.composition.frame import Alignment, align
from robot.composition.member import Member
from robot.composition.rows import take_rows
from robot.normalise import NormStats

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["Panel", "Seat", "seat"]


@dataclass(frozen=True)
class Seat:
    """A member's place in the composed chunk and its change of coordinates.

    Attributes:
        member: Whose it is.
        steps: Of the composed chunk.
        columns: Of the composed state, its private ones last, ``(dims,)``.
        alignment: From the composition's coordinates to its own.
    """

    member: Member
    steps: slice
    columns: Tensor
    alignment: Alignment

    def own(self, x: Tensor) -> Tensor:
        """Its part of a composed state, ``(batch, horizon, dims)``."""
        return x[:, self.steps].index_select(2, self.columns.to(x.device))


def seat(members: Sequence[Member], frame: NormStats, horizon: int) -> list[Seat]:
    """Give every member its place.

    Args:
        members: All that take part.
        frame: The composition's normaliser, ``(dof,)``.
        horizon: Of the composed chunk.

    Raises:
        ValueError: If a member reaches outside the chunk or the action.
    """
    dof = len(frame.scale)
    seats, private = [], dof
    for member in members:
        dims = tuple(range(dof)) if member.dims is None else member.dims
        stop = horizon if member.horizon is None else member.start + member.horizon
        if max(dims) >= dof or not member.start < stop <= horizon:
            raise ValueError(
                f"{member.label} covers steps {member.start} to {stop - 1} and dimensions {list(dims)}, but the composed chunk has "
                f"{horizon} steps and {dof} dimensions; set its start, horizon and dims, or ask for a longer chunk"
            )
        columns = torch.tensor([*dims, *range(private, private + member.private_dims)])
        private += member.private_dims
        seats.append(Seat(member, slice(member.start, stop), columns, _alignment(member, frame, list(dims))))
    return seats


def _alignment(member: Member, frame: NormStats, dims: list[int]) -> Alignment:
    own = NormStats(torch.as_tensor(member.offset).expand(len(dims)), torch.as_tensor(member.scale).expand(len(dims)))
    aligned = align(NormStats(frame.offset[dims], frame.scale[dims]), own)
    # Private dimensions live in the member's own units; they share its noise level.
    ones = torch.full((member.private_dims,), aligned.common_ratio)
    return Alignment(torch.cat([aligned.ratio, ones]), torch.cat([aligned.shift, torch.zeros(member.private_dims)]))


class Panel:
    """The members of a composition about one observation: encoded once, then asked at every denoising step."""

    def __init__(self, seats: Sequence[Seat], conditions: Sequence[Any], rows: Sequence[Tensor | None]) -> None:
        """Bind members to what their encoders returned.

        Args:
            seats: The members.
            conditions: One for each.
            rows: For each, the rows of the batch that have a use for it; None for all.
        """
        self.seats = seats
        self._rows = rows
        self._conditions = [c if r is None else take_rows(c, r) for c, r in zip(conditions, rows, strict=True)]
        self._kept: dict[int, Tensor] = {}
        self._bad: dict[int, Tensor] = {}
        self.seconds = [0.0] * len(seats)
        self.evaluations = [0] * len(seats)

    def velocities(self, x: Tensor, t: float, step: int) -> Tensor:
        """Every member's velocity in the composition's coordinates.

        Args:
            x: Composed state, ``(batch, horizon, dims)``.
            t: Noise level, in (0, 1].
            step: Number of the denoising step; members with ``every`` > 1 answer anew at its multiples.

        Returns:
            ``(member, batch, horizon, dims)``, 0 where a member has no say.
        """
        result = x.new_zeros(len(self.seats), *x.shape)
        for index, place in enumerate(self.seats):
            rows = self._rows[index]
            own = place.own(x if rows is None else x[rows])
            velocity = self._timed(index, own, t, step).to(result)
            target = result[index] if rows is None else result[index][rows]
            target[:, place.steps, place.columns.to(x.device)] = velocity
            if rows is not None:
                result[index, rows] = target
        return result

    def check_finite(self) -> None:
        """Refuse what a member could not have meant, once a chunk.

        Raises:
            NonFiniteError: If a prediction was not finite; it names the member.
        """
        bad = [self.seats[index].member.label for index, flag in self._bad.items() if bool(flag)]
        if bad:
            raise NonFiniteError(f"{', '.join(bad)} predicted a number that is not finite; check its weights and its observation's units")

    def _timed(self, index: int, own: Tensor, t: float, step: int) -> Tensor:
        member = self.seats[index].member
        if step % member.every and index in self._kept:
            return (own - self._kept[index]) / t
        started = _now(own)
        velocity = self._ask(index, own, t)
        self.seconds[index] += _now(own) - started
        self.evaluations[index] += len(own)
        if member.every > 1:
            self._kept[index] = own - t * velocity
        return velocity

    def _ask(self, index: int, own: Tensor, t: float) -> Tensor:
        """One network call: into the member's normalised units, noise level and path, and back."""
        member, alignment = self.seats[index].member, self.seats[index].alignment
        time_i = float(alignment.time(torch.tensor(t, dtype=torch.float64)))
        state = alignment.state(own, torch.tensor(t, dtype=own.dtype))
        reached = min(time_i, member.largest_time)
        a, b = member.path.flow_coefficients(reached, state)
        # Above its schedule a member takes the state for its noisiest: sampling starts from N(0, I) in the coordinates of its path.
        x = state * (a + b) if reached == time_i else state / math.hypot(time_i, 1 - time_i)
        own_time = member.path.own_time(reached).to(state.device)
        own_time = own_time if not own_time.is_floating_point() else own_time.to(state.dtype)
        prediction = member.predict(x, own_time.expand(len(x)), self._conditions[index])
        if prediction.shape != x.shape:
            raise ValueError(f"{member.label} was asked about {tuple(x.shape)} and answered {tuple(prediction.shape)}; both must be equal")
        self._note(index, prediction)
        ends = PREDICTIONS[member.kind](prediction.to(float_dtype(prediction, own)), x, a, b)
        if alignment.identity and member.clip is None and reached == time_i:
            return ends.velocity
        data = ends.data if member.clip is None else ends.data.clamp(-member.clip, member.clip)
        return (own - alignment.data(data)) / t

    def _note(self, index: int, prediction: Tensor) -> None:
        bad = ~torch.isfinite(prediction).all()
        self._bad[index] = bad | self._bad[index] if index in self._bad else bad


def _now(like: Tensor) -> float:
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return time.perf_counter()
