"""Members side by side: each asked in its own coordinates about one composed state, bound to one observation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.errors import NonFiniteError
from flowrl.flow import PREDICTIONS
from flowrl.shapes import float_dtype
from robot.composition.clock import Clock
from robot.composition.frame import Alignment, align
from robot.composition.member import Member
from robot.composition.rows import take_rows
from robot.normalise import NormStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robot.composition.stack import Stack


__all__ = ["Panel", "Seat", "seat"]


@dataclass(frozen=True)
class Seat:
    """A member's place in the composed chunk and its change of coordinates.

    Attributes:
        member: Whose it is.
        steps: Of the composed chunk.
        columns: Of the composed state, its private ones last, ``(dims,)``.
        alignment: From the composition's coordinates to its own.
        whole: Whether its columns are all of the composed state, in its order.
    """

    member: Member
    steps: slice
    columns: Tensor
    alignment: Alignment
    whole: bool = False

    def own(self, x: Tensor) -> Tensor:
        """Its part of a composed state, ``(batch, horizon, dims)``."""
        part = x[:, self.steps]
        return part if self.whole else part.index_select(2, self.columns.to(x.device))


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
    return [replace(place, whole=torch.equal(place.columns, torch.arange(private))) for place in seats]


def _alignment(member: Member, frame: NormStats, dims: list[int]) -> Alignment:
    own = NormStats(torch.as_tensor(member.offset).expand(len(dims)), torch.as_tensor(member.scale).expand(len(dims)))
    aligned = align(NormStats(frame.offset[dims], frame.scale[dims]), own)
    # Private dimensions live in the member's own units; they share its noise level.
    ones = torch.full((member.private_dims,), aligned.common_ratio)
    return Alignment(torch.cat([aligned.ratio, ones]), torch.cat([aligned.shift, torch.zeros(member.private_dims)]))


@dataclass(frozen=True)
class _Query:
    """One question to one member, in its own path coordinates.

    Attributes:
        own: Its part of the composed state.
        x: The same in its path's coordinates and normalised units.
        time: Its path's own time, ``(batch,)``.
        ends: The path's coefficients ``(a, b)`` at that time.
        exact: Whether its schedule reaches the noise level.
    """

    own: Tensor
    x: Tensor
    time: Tensor
    ends: tuple[Tensor, Tensor]
    exact: bool


class Panel:
    """The members of a composition about one observation: encoded once, then asked at every denoising step."""

    def __init__(self, seats: Sequence[Seat], conditions: Sequence[Any], rows: Sequence[Tensor | None], stack: Stack | None = None) -> None:
        """Bind members to what their encoders returned.

        Args:
            seats: The members.
            conditions: One for each.
            rows: For each, the rows of the batch that have a use for it; None for all.
            stack: Networks of members that can be called as one; None calls them in turn.
        """
        self.seats = seats
        self._rows = rows
        self._conditions = [c if r is None else take_rows(c, r) for c, r in zip(conditions, rows, strict=True)]
        self._stack = stack
        self._kept: dict[int, Tensor] = {}
        self._bad: dict[int, list[Tensor]] = {}
        self._clock = Clock()
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
        parts = [place.own(x if rows is None else x[rows]) for place, rows in zip(self.seats, self._rows, strict=True)]
        asked = [k for k, place in enumerate(self.seats) if not (step % place.member.every and k in self._kept)]
        queries = {k: self._query(k, parts[k], t) for k in asked}
        predictions = self._predictions(queries)
        for index, place in enumerate(self.seats):
            velocity = self._read(index, queries[index], predictions[index], t) if index in queries else self._kept[index]
            rows, columns = self._rows[index], place.columns.to(x.device)
            target = result[index] if rows is None else result[index][rows]
            if place.whole:
                target[:, place.steps] = velocity
            else:
                target[:, place.steps, columns] = velocity.to(result)
            if rows is not None:
                result[index, rows] = target
        return result

    def seconds(self) -> list[float]:
        """Spent in each member's network so far."""
        return self._clock.seconds(len(self.seats))

    def check_finite(self) -> None:
        """Refuse what a member could not have meant, once a chunk.

        Raises:
            NonFiniteError: If a prediction was not finite; it names the member.
        """
        first = {index: torch.stack(flags).int().argmax() for index, flags in self._bad.items() if bool(torch.stack(flags).any())}
        if first:  # what it breaks it breaks for all members from the next step on: those that were first are to blame
            bad = [self.seats[index].member.label for index, step in first.items() if step == min(first.values())]
            raise NonFiniteError(f"{', '.join(bad)} predicted a number that is not finite; check its weights and its observation's units")

    def _query(self, index: int, own: Tensor, t: float) -> _Query:
        """Into the member's normalised units, noise level and path."""
        member, alignment = self.seats[index].member, self.seats[index].alignment
        time_i = alignment.time(t)
        state = alignment.state(own, t)
        reached = min(time_i, member.largest_time)
        a, b = member.path.flow_coefficients(reached, state)
        # Above its schedule a member takes the state for its noisiest: sampling starts from N(0, I) in the coordinates of its path.
        x = state * (a + b) if reached == time_i else state / math.hypot(time_i, 1 - time_i)
        own_time = member.path.own_time(reached).to(state.device)
        own_time = own_time.to(state.dtype) if own_time.is_floating_point() else own_time
        return _Query(own, x, own_time.expand(len(x)), (a, b), exact=reached == time_i)

    def _predictions(self, queries: dict[int, _Query]) -> dict[int, Tensor]:
        """Every network's answer; those of one architecture in one call where that was asked for."""
        if self._stack is not None and self._stack.fits(queries, self._conditions):
            started = self._clock.now(next(iter(queries.values())).x)
            answers = self._stack(queries, self._conditions)
            ended = self._clock.now(next(iter(answers.values())))
            for index, query in queries.items():
                self._clock.add(index, started, ended, 1 / len(queries))
                self.evaluations[index] += len(query.x)
            return answers
        answers = {}
        for index, query in queries.items():
            started = self._clock.now(query.x)
            answers[index] = self.seats[index].member.predict(query.x, query.time, self._conditions[index])
            self._clock.add(index, started, self._clock.now(query.x))
            self.evaluations[index] += len(query.x)
        return answers

    def _read(self, index: int, query: _Query, prediction: Tensor, t: float) -> Tensor:
        """From what a member predicted to its velocity in the composition's coordinates."""
        member, alignment = self.seats[index].member, self.seats[index].alignment
        if not isinstance(prediction, Tensor) or prediction.shape != query.x.shape:
            answer = tuple(prediction.shape) if isinstance(prediction, Tensor) else f"a {type(prediction).__name__}"
            raise ValueError(
                f"{member.label} was asked about {tuple(query.x.shape)} and answered {answer}; predict must return a tensor of that shape"
            )
        self._bad.setdefault(index, []).append(~torch.isfinite(prediction).all())
        ends = PREDICTIONS[member.kind](prediction.to(float_dtype(prediction, query.x)), query.x, *query.ends)
        data = ends.data if member.clip is None else ends.data.clamp(-member.clip, member.clip)
        exact = alignment.identity and member.clip is None and query.exact
        velocity = ends.velocity if exact else (query.own - alignment.data(data)) / t
        if member.every > 1:
            self._kept[index] = velocity
        return velocity
