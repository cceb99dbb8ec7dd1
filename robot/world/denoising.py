"""A chunk under way: frames and actions with their times, taken step by step to wherever a schedule says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from flowrl.flow import ODE
from robot.world.network import JointTransformer, Seen

if TYPE_CHECKING:
    from flowrl.flow import Condition, VelocityField
    from flowrl.shapes import Time
    from robot.world.layout import Layout

__all__ = ["Denoising", "JointField", "Schedule", "Watched"]


class Schedule(Protocol):
    """Decides step by step how noisy each frame is next: a table (:class:`samplers.PerTokenSchedule`) or a policy (a noise gate)."""

    @property
    def steps(self) -> int:
        """Denoising steps."""
        ...

    def next(self, state: Denoising) -> tuple[Tensor, Tensor]:
        """Times after the next step: of the frames ``(batch, frame)``, at most those now, and of the actions ``()`` or ``(batch,)``.

        Args:
            state: What there is now; not changed.
        """
        ...


@dataclass(kw_only=True)
class Watched:
    """What the video stream gave last, for the rows whose frames have not moved since.

    Attributes:
        velocity: ``(batch, frame, token, channel)``.
        seen: Keys and values of every layer.
    """

    velocity: Tensor
    seen: Seen


@dataclass(frozen=True, kw_only=True, eq=False)
class JointField:
    """The velocity field of a world-action model's network, on packed states.

    Its condition has ``observed`` ``(batch, observed, token, channel)`` and, where the network takes any, ``features``.

    Attributes:
        network: The network.
        hidden: ``(frame,)`` bool, predicted frames that actions must not attend to; None hides none.
    """

    network: JointTransformer
    hidden: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        """See :class:`flowrl.flow.VelocityField`."""
        return self.network(x_t, t, *self._given(condition), self._hidden(x_t))

    def watch(self, x: Tensor, times: Tensor, condition: Condition, last: Watched | None, stale: Tensor) -> tuple[Watched, torch.Size]:
        """The video stream, evaluated where frames have moved since it was last.

        Rows of which no frame moved are left out; under causal attention also the frames before the first that moved.

        Args:
            x: Packed state.
            times: ``(batch, frame + 1)``.
            condition: One row per row of the state.
            last: What it gave last; None evaluates everything.
            stale: ``(batch, frame)`` bool, frames that moved since then.

        Returns:
            What it gives now, and how many rows and predicted frames of each were evaluated.
        """
        if last is not None and not bool(stale.any()):
            return last, torch.Size((0, 0))
        if last is None or bool(stale[:, 0].all()):  # from the first frame on, in every row: nothing to keep
            velocity, seen = self.network.watch(x, times, *self._given(condition))
            return Watched(velocity=velocity, seen=seen), velocity.shape[:2]
        rows = stale.any(dim=1).nonzero().squeeze(1)
        causal = self.network.order is not None
        first = int(stale.any(dim=0).nonzero()[0]) if causal else 0
        start = self.network.observed + first if causal else 0
        kept = tuple((keys[rows], values[rows]) for keys, values in last.seen)
        velocity, seen = self.network.watch(x[rows], times[rows], *self._given(condition[rows]), kept=kept, start=start)
        merged = last.velocity.clone()
        merged[rows, first:] = velocity
        return Watched(velocity=merged, seen=_put(last.seen, rows, seen)), velocity.shape[:2]

    def act(self, x: Tensor, times: Tensor, condition: Condition, watched: Watched) -> Tensor:
        """The action stream, ``(batch, horizon, dof)``."""
        return self.network.act(x, times, watched.seen, condition.tensors.get("features"), self._hidden(x))

    @staticmethod
    def _given(condition: Condition) -> tuple[Tensor, Tensor | None]:
        return condition.tensors["observed"], condition.tensors.get("features")

    def _hidden(self, x: Tensor) -> Tensor | None:
        return None if self.hidden is None else self.hidden.to(x.device).expand(len(x), -1)


def _put(into: Seen, rows: Tensor, some: Seen) -> Seen:
    """Keys and values with some rows replaced."""
    pairs = zip(into, some, strict=True)
    return tuple((keys.index_copy(0, rows, k), values.index_copy(0, rows, v)) for (keys, values), (k, v) in pairs)


class Denoising:
    """Frames and actions of a batch on their way from noise; :meth:`advance` changes it.

    Where frames do not attend to actions, some evaluations can be left out without changing the result: of the video stream those of rows
    whose frames stay (under causal attention also of frames before the first that moved), of the action stream all while the actions wait.

    Attributes:
        field: Velocity of packed states.
        layout: Of the states.
        condition: One row per row of the state.
        x: Packed state ``(batch, frame + 1, width)``.
        times: Of the frames, float64 ``(batch, frame)``.
        action_time: Of the actions, float64 ``(batch,)``.
        step: Steps taken.
        video_rows: Rows for which the video stream was evaluated, over all steps;
        video_frames: and predicted frames.
        action_rows: Rows for which the action stream was evaluated, over all steps.
    """

    def __init__(self, field: VelocityField, layout: Layout, condition: Condition, x: Tensor, *, skip: bool = True) -> None:
        """At pure noise.

        Args:
            field: Velocity of packed states.
            layout: Of the states.
            condition: One row per row of the state.
            x: Standard normal packed state, see :meth:`robot.world.layout.Layout.noise`.
            skip: Whether to leave out evaluations that do not change the result.
        """
        self.field, self.layout, self.condition, self.x = field, layout, condition, x
        self.times = torch.ones(len(x), layout.frames, dtype=torch.float64, device=x.device)
        self.action_time = torch.ones(len(x), dtype=torch.float64, device=x.device)
        self.step = self.video_rows = self.video_frames = self.action_rows = 0
        self._skip = skip
        self._watched: Watched | None = None
        self._stale = torch.ones_like(self.times, dtype=torch.bool)

    def __len__(self) -> int:
        """Rows."""
        return len(self.x)

    @property
    def latents(self) -> Tensor:
        """The frames now, ``(batch, frame, token, channel)``."""
        return self.layout.latents(self.x)

    @property
    def actions(self) -> Tensor:
        """The chunk now, normalised units ``(batch, horizon, dof)``."""
        return self.layout.actions(self.x)

    @property
    def observed(self) -> Tensor | None:
        """Latents of the frames seen, ``(batch, observed, token, channel)``; None where the field is shown none."""
        return self.condition.tensors.get("observed")

    @property
    def features(self) -> Tensor | None:
        """What else the field is told, ``(batch, feature)``."""
        return self.condition.tensors.get("features")

    @torch.no_grad()
    def advance(self, times: Tensor, action_time: Tensor) -> None:
        """Evaluate the velocity here and take one Euler step.

        Args:
            times: Of the frames after the step, ``(batch, frame)``, at most their present ones.
            action_time: Of the actions after the step, ``()`` or ``(batch,)``.

        Raises:
            ValueError: If there is not one time per row and frame, or a time lies outside [0, its present value].
        """
        if times.shape != self.times.shape:
            raise ValueError(
                f"this chunk needs times (batch, frame) of shape {tuple(self.times.shape)}, got {tuple(times.shape)}; "
                f"make the schedule for tokens={self.layout.frames}, one per predicted frame"
            )
        later, action = times.to(self.times), action_time.to(self.times).expand(len(self))
        now, then = self.layout.times(self.times, self.action_time), self.layout.times(later, action)
        velocity = self._velocity(now.to(self.x.dtype), actions_move=bool((action < self.action_time).any()))
        self.x = ODE().transition(velocity, self.x, now.to(self.x.dtype), then.to(self.x.dtype)).mean
        self._stale = later != self.times
        self.times, self.action_time = later, action
        self.step += 1

    def follow(self, schedule: Schedule) -> Denoising:
        """Take all steps that a schedule has left.

        Args:
            schedule: Times of frames and actions.

        Returns:
            Itself.
        """
        while self.step < schedule.steps:
            self.advance(*schedule.next(self))
        return self

    def _velocity(self, times: Tensor, *, actions_move: bool) -> Tensor:
        """Packed velocity; zeros for actions that wait, where that spares an evaluation."""
        if not (self._skip and isinstance(self.field, JointField) and not self.field.network.video_sees_action):
            self._count(*self.times.shape)
            self.action_rows += len(self)
            return self.field(self.x, times, self.condition)
        self._watched, evaluated = self.field.watch(self.x, times, self.condition, self._watched, self._stale)
        self._count(*evaluated)
        if not actions_move:
            return self.layout.pack(self._watched.velocity, torch.zeros_like(self.actions))
        self.action_rows += len(self)
        return self.layout.pack(self._watched.velocity, self.field.act(self.x, times, self.condition, self._watched))

    def _count(self, rows: int, frames: int) -> None:
        self.video_rows += rows
        self.video_frames += rows * frames
