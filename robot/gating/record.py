"""What a gate sees, and what is kept of a chunk's decisions so that they can be scored again."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from robot.gating.decision import multiplier

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FixedLatents", "GateRecord", "State", "View"]

_WITHOUT_TOKENS = 3  # axes of latents (batch, frame, channel)


class State(Protocol):
    """A chunk under way, as far as gates are concerned; :class:`robot.world.denoising.Denoising` is one."""

    @property
    def step(self) -> int:
        """Steps taken."""
        ...

    @property
    def latents(self) -> Tensor:
        """Noisy frames ``(batch, frame, token, channel)``."""
        ...

    @property
    def observed(self) -> Tensor | None:
        """Clean frames seen, ``(batch, observed, token, channel)``, oldest first."""
        ...

    @property
    def times(self) -> Tensor:
        """Of the frames, float64 ``(batch, frame)``."""
        ...

    @property
    def action_time(self) -> Tensor:
        """Of the actions, float64 ``(batch,)``."""
        ...

    def advance(self, times: Tensor, action_time: Tensor) -> object:
        """Go to new times, none later than the present ones."""
        ...


class FixedLatents:
    """Latents that stay as they are: schedules can be drawn for them without a model."""

    def __init__(self, latents: Tensor) -> None:
        """Begin at time 1.

        Args:
            latents: ``(batch, frame, token, channel)`` or ``(batch, frame, channel)``; nothing was observed.

        Raises:
            ValueError: If they have other axes.
        """
        if latents.ndim not in (_WITHOUT_TOKENS, _WITHOUT_TOKENS + 1):
            raise ValueError(
                "latents have the axes (batch, frame, token, channel), or (batch, frame, channel) where there is one token, "
                f"got {tuple(latents.shape)}"
            )
        self.latents = latents.unsqueeze(2) if latents.ndim == _WITHOUT_TOKENS else latents
        self.observed = None
        self.times = torch.ones(latents.shape[:2], dtype=torch.float64, device=latents.device)
        self.action_time = self.times[:, 0]
        self.step = 0

    def advance(self, times: Tensor, action_time: Tensor) -> None:
        """Only the times move."""
        self.times, self.action_time, self.step = times, action_time.expand(len(times)), self.step + 1


@dataclass(frozen=True)
class View:
    """What a gate reads at one denoising step.

    Attributes:
        latents: Noisy frames ``(batch, frame, token, channel)``.
        times: Theirs, ``(batch, frame)``.
        action_time: ``(batch,)``; on a shared schedule it tells the step.
        observed: The newest clean frame, ``(batch, token, channel)``; zeros where none is shown.
    """

    latents: Tensor
    times: Tensor
    action_time: Tensor
    observed: Tensor

    @classmethod
    def of(cls, state: State) -> View:
        """Of a chunk under way."""
        observed = torch.zeros_like(state.latents[:, 0]) if state.observed is None else state.observed[:, -1]
        return cls(state.latents, state.times, state.action_time, observed)


@dataclass(frozen=True, kw_only=True)
class GateRecord:
    """The decisions of one chunk per row, and all that is needed to score them under other weights.

    A *column* is a latent, and last, where the gate moves it, the action stream.

    Attributes:
        times: Of the latents, float64 ``(step + 1, batch, frame)``, from 1, never increasing.
        action_times: Of the actions, float64 ``(step + 1, batch)``, from 1 to 0.
        decisions: ``u``, ``(batch, step, column)``; multipliers are ``2·sigmoid(u)``.
        log_prob: Log-density of each multiplier when it was drawn, nats ``(batch, step, column)``.
        counts: ``(batch, step, column)`` bool: whether a decision could change the actions. Not where the latent had reached 0, not once
            the actions have, and not at the last step: it moves the frames after the actions were asked for the last time, and the
            actions themselves to 0.
        latents: What was seen of the noisy frames ``(batch, step, frame, token, channel)``; None for a gate that does not look.
        observed: And of the newest clean frame ``(batch, token, channel)``; None likewise.
    """

    times: Tensor
    action_times: Tensor
    decisions: Tensor
    log_prob: Tensor
    counts: Tensor
    latents: Tensor | None = None
    observed: Tensor | None = None

    def __len__(self) -> int:
        """Rows."""
        return len(self.decisions)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> GateRecord:
        """Some rows."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows, device=self.decisions.device)
        return self._map(lambda tensor, axis: tensor[(slice(None),) * axis + (index,)])

    def to(self, device: torch.device | str) -> GateRecord:
        """On another device."""
        return self._map(lambda tensor, _: tensor.to(device))

    @property
    def multipliers(self) -> Tensor:
        """``r`` in (0, 2), ``(batch, step, column)``."""
        return multiplier(self.decisions)

    @property
    def views(self) -> View:
        """What was seen at every step of every row, ``(batch·step, ...)``, steps of a row side by side.

        Raises:
            ValueError: If the gate that made the record did not look.
        """
        if self.latents is None or self.observed is None:
            raise ValueError("this record holds no latents: its gate decides without looking; score it under a gate of that kind")
        steps = self.decisions.shape[1]
        times, action_times = self.times[:-1].transpose(0, 1), self.action_times[:-1].transpose(0, 1)
        return View(self.latents.flatten(0, 1), times.flatten(0, 1), action_times.flatten(0, 1), self.observed.repeat_interleave(steps, 0))

    @staticmethod
    def cat(records: Sequence[GateRecord]) -> GateRecord:
        """Rows of several records of one gate under one another.

        Raises:
            ValueError: If there are none.
        """
        if not records:
            raise ValueError("there are no records to join; give at least one")
        first = records[0]
        names = [field.name for field in fields(first) if getattr(first, field.name) is not None]
        joined: dict[str, Any] = {name: torch.cat([getattr(record, name) for record in records], dim=_batch_axis(name)) for name in names}
        return GateRecord(**joined)

    def _map(self, change: Any) -> GateRecord:
        """``change(tensor, batch axis)`` of everything that is there."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: None if value is None else change(value, _batch_axis(name)) for name, value in given.items()}
        return GateRecord(**changed)


def _batch_axis(name: str) -> int:
    return 1 if name in ("times", "action_times") else 0
