"""A world-action model as a policy: it imagines frames and actions together, each frame as far as its schedule lets it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.errors import close_match
from flowrl.flow import Condition
from robot.learning.encoders import ObservationEncoder
from robot.normalise import NormStats
from robot.types import ActionChunk, ActionSpec, Observation
from robot.world.denoising import Denoising, JointField, Schedule
from robot.world.latents import LatentCodec
from robot.world.network import JointTransformer
from robot.world.recipe import WorldModules

if TYPE_CHECKING:
    from torch import nn

    from flowrl.flow import VelocityField
    from flowrl.shapes import RandomSource
    from robot.world.layout import Layout

__all__ = ["WorldActionModel"]


@dataclass(frozen=True, kw_only=True, eq=False)
class WorldActionModel:
    """Observation → predicted frames and a chunk of actions, denoised together (world-action model, arXiv:2605.07794, Sec. 3).

    How much the actions learn from a predicted frame is decided by that frame's noise level on the way (noise as masking): at 1 it is pure
    noise and tells nothing, at 0 it is fully imagined. The schedule says who is where when.

    Attributes:
        codec: Frames to latents.
        network: Velocities of frames and actions.
        stats: Normaliser of the actions.
        action: What the actions mean.
        stride: Control steps between predicted frames; the first is ``stride`` steps ahead.
        execute: Actions executed before the next chunk is drawn.
        schedule: Times of the frames and the actions.
        encoder: What else is observed, such as a goal, to features; None for nothing.
        tasks: Names of the tasks that it was trained on; empty for a single one.
        task: Which of them is to be done now.
        clip: Bound on the actions, normalised units; None for none.
        skip: Whether evaluations that change nothing are left out, see :class:`robot.world.denoising.Denoising`.
        hidden: Predicted frames that the actions must not attend to, ``(frame,)`` bool; None hides none.
        name: For tables and messages.

    Raises:
        ValueError: If the executed actions do not fit the chunk, or the task is none of those trained.
    """

    codec: LatentCodec
    network: JointTransformer
    stats: NormStats
    action: ActionSpec
    stride: int
    execute: int
    schedule: Schedule
    encoder: ObservationEncoder | None = None
    tasks: tuple[str, ...] = ()
    task: str | None = None
    clip: float | None = 1.0
    skip: bool = True
    hidden: Tensor | None = None
    name: str = "world-action model"

    def __post_init__(self) -> None:
        if not 1 <= self.execute <= self.layout.horizon or self.stride < 1:
            raise ValueError(
                f"a chunk of {self.layout.horizon} needs 1 <= execute <= {self.layout.horizon} and stride >= 1, "
                f"got execute={self.execute} and stride={self.stride}"
            )
        if self.tasks and self.task not in self.tasks:
            raise ValueError(
                f"this model knows the tasks {', '.join(self.tasks)}; set task to one of them, got {self.task!r}"
                f"{close_match(self.task or '', self.tasks)}"
            )

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Its networks by name, as in a file."""
        return WorldModules(codec=self.codec, network=self.network, encoder=self.encoder).parts

    @property
    def layout(self) -> Layout:
        """Of its states."""
        return self.network.layout

    @property
    def horizon(self) -> int:
        """Steps of a chunk."""
        return self.layout.horizon

    @property
    def sensors(self) -> tuple[str, ...]:
        """Names of the sensors that it reads."""
        return tuple(dict.fromkeys((*self.codec.sensors, *(self.encoder.sensors if self.encoder else ()))))

    @property
    def history(self) -> int:
        """Frames of every sensor that it reads."""
        return max(self.network.observed, self.encoder.history if self.encoder else 1)

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return next(self.network.parameters()).device

    def with_schedule(self, schedule: Schedule) -> WorldActionModel:
        """The same model with other times.

        Args:
            schedule: A :class:`samplers.PerTokenSchedule`, or a noise gate.

        Raises:
            ValueError: If it is no schedule.
        """
        if not (isinstance(getattr(schedule, "steps", None), int) and callable(getattr(schedule, "next", None))):
            raise ValueError(
                f"a schedule has steps and next(state), {schedule!r} has not; give a PerTokenSchedule, such as "
                f"PerTokenSchedule.masked(steps=5, tokens={self.layout.frames}), or a NoiseGate"
            )
        return replace(self, schedule=schedule)

    def field(self) -> VelocityField:
        """The velocity on packed states, for any sampler of flowrl."""
        return JointField(network=self.network, hidden=self.hidden)

    def condition(self, observation: Observation) -> Condition:
        """What its field is conditioned on: the latents of the frames seen, and features of everything else.

        Args:
            observation: At least its sensors and history.
        """
        seen = observation.only(self.sensors, self.history).to(self.device)
        tensors = {"observed": self.codec.encode(seen.only(self.codec.sensors, self.network.observed).values)}
        parts = [] if self.encoder is None else [self.encoder(seen)]
        if self.tasks:
            parts.append(self._task().expand(len(seen), -1))
        return Condition(tensors | ({"features": torch.cat(parts, dim=1)} if parts else {}))

    def _task(self) -> Tensor:
        """One-hot: the network's first layer over it is the task's embedding."""
        return torch.tensor([[float(name == self.task) for name in self.tasks]], device=self.device)

    @torch.no_grad()
    def begin(self, observation: Observation, generator: RandomSource = None) -> Denoising:
        """A chunk under way, at pure noise.

        Args:
            observation: At least its sensors and history.
            generator: Source of the noise, one or one per row.
        """
        x = self.layout.noise(len(observation), generator, device=self.device)
        return Denoising(field=self.field(), layout=self.layout, condition=self.condition(observation), x=x, skip=self.skip)

    def act(self, observation: Observation, generator: RandomSource = None) -> ActionChunk:
        """See :class:`robot.types.Policy`."""
        start = time.perf_counter()
        state = self.begin(observation, generator).follow(self.schedule)
        return self.chunk(state, time.perf_counter() - start)

    def chunk(self, state: Denoising, seconds: float = 0.0) -> ActionChunk:
        """The actions of a state, physical units.

        Args:
            state: Denoised.
            seconds: That it took.
        """
        actions = state.actions if self.clip is None else state.actions.clamp(-self.clip, self.clip)
        return ActionChunk(values=self.stats.unnormalise(actions), spec=self.action, latency_s={self.name: seconds})

    def imagined(self, state: Denoising) -> dict[str, Tensor]:
        """The frames of a state as sensors show them, ``(batch, frame, ...)``; a frame at time 1 is noise."""
        return self.codec.decode(state.latents)
