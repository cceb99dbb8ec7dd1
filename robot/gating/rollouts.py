"""Rollouts of a gate that tries things: a policy that records its decisions, and what an update learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robot.execution import EpisodeKey
from robot.gating.gate import Gate
from robot.gating.noise import ExplorationNoise
from robot.gating.record import GateRecord
from robot.world_action import WorldActionModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrl.shapes import RandomSource
    from robot.types import ActionChunk, ActionSpec, Observation
    from robot.world.denoising import Denoising

__all__ = ["Experience", "Explorer", "Tally"]


@dataclass(kw_only=True)
class Tally:
    """What chunks have cost.

    Attributes:
        chunks: How many were drawn.
        video: Evaluations of the video stream, each for one row; where some frames were left out, their share does not count.
        action: Evaluations of the action stream, each for one row.
    """

    chunks: int = 0
    video: float = 0.0
    action: int = 0

    def add(self, state: Denoising) -> None:
        """Count a batch of chunks.

        Args:
            state: Done.
        """
        self.chunks += len(state)
        self.video += state.video_frames / state.layout.frames
        self.action += state.action_rows

    def per(self, count: int) -> dict[str, float]:
        """Evaluations of each stream per so many things."""
        return {"video": self.video / max(1, count), "action": self.action / max(1, count)}


@dataclass(frozen=True, kw_only=True)
class Experience:
    """The decisions of a rollout, and how well they went.

    Attributes:
        record: One row per chunk.
        advantage: Of each chunk's decisions, ``(chunk,)``.
    """

    record: GateRecord
    advantage: Tensor

    def __len__(self) -> int:
        """Chunks."""
        return len(self.record)

    def informative(self) -> Experience:
        """Without the chunks that have an advantage of 0."""
        rows = self.advantage.nonzero().squeeze(1)
        return self if len(rows) == len(self) else Experience(record=self.record[rows], advantage=self.advantage[rows])


@dataclass(kw_only=True, eq=False)
class Explorer:
    """A policy that draws chunks under a gate's drawn decisions, and keeps these.

    Attributes:
        model: The world-action model; nothing in it changes.
        gate: Decides.
        noise: What is tried in which chunk.
        tally: Counts evaluations.
        heed: Called before each chunk; may raise to stop.
    """

    model: WorldActionModel
    gate: Gate
    noise: ExplorationNoise
    tally: Tally = field(default_factory=Tally)
    heed: Callable[[], None] = lambda: None
    _records: list[GateRecord] = field(default_factory=list)
    _places: dict[EpisodeKey, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.model.name} under a gate"

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return next(self.gate.parameters()).device

    @property
    def action(self) -> ActionSpec:
        """What its actions mean."""
        return self.model.action

    @property
    def sensors(self) -> tuple[str, ...]:
        """What it needs to see."""
        return self.model.sensors

    @property
    def history(self) -> int:
        """How many frames of it."""
        return self.model.history

    @property
    def execute(self) -> int:
        """Actions of a chunk that are executed."""
        return self.model.execute

    @torch.no_grad()
    def act(self, observation: Observation, generator: RandomSource = None, episodes: Sequence[EpisodeKey] = ()) -> ActionChunk:
        """Draw a chunk per row and keep how; what an earlier call kept of the same chunks is replaced.

        Args:
            observation: See :class:`robot.types.Policy`.
            generator: Source of the base noise.
            episodes: Which chunk each row is.

        Raises:
            ValueError: If rows are not named.
        """
        if len(episodes) != len(observation):
            raise ValueError(f"an explorer has to know which chunk each of {len(observation)} rows is, got {len(episodes)} names")
        self.heed()
        noise = torch.stack([self.noise(key) for key in episodes]).to(self.device)
        state = self.model.begin(observation, generator)
        record = self.gate.explore(state, lambda k: noise[:, k])
        self.tally.add(state)
        first = sum(map(len, self._records))
        self._records.append(record)
        self._places |= {key: first + row for row, key in enumerate(episodes)}
        return self.model.chunk(state)

    def recorded(self) -> tuple[list[EpisodeKey], GateRecord]:
        """All chunks, by variation and number: whatever the batches were, the order is the same.

        Raises:
            ValueError: If nothing was recorded.
        """
        keys = sorted(self._places, key=lambda key: (key.variation, key.chunk))
        return keys, GateRecord.cat(self._records)[[self._places[key] for key in keys]]
