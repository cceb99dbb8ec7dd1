"""Receding-horizon execution: a policy of chunks becomes a policy of steps, for many environments at once."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowrl.errors import NonFiniteError
from flowrl.shapes import seeded_generator
from robot.types import Observation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from robot.envs.base import Frame
    from robot.types import Policy

__all__ = ["ChunkExecutor", "EpisodeKey"]

_PICTURE_AXES = 3


class EpisodeKey(NamedTuple):
    """Which chunk of which episode a row of a batch is for, told to policies that explore.

    Attributes:
        seed: Of the episode.
        variation: Which of the rollouts of that seed.
        chunk: Number of the chunk in its episode, from 0.
    """

    seed: int
    variation: int
    chunk: int


@dataclass
class _Row:
    """One episode under way."""

    seed: int
    weights: tuple[float, ...] | None
    frames: deque[dict[str, NDArray[Any]]]
    variation: int | None = None
    queue: deque[NDArray[np.float32]] = field(default_factory=deque)
    chunks: int = 0
    latency_s: dict[str, float] = field(default_factory=dict)
    disagreement: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def company(self) -> tuple[tuple[bool, ...] | None, bool]:
        """What rows must have in common to share a call.

        Which members have weight: who takes part decides on noise levels and units. And whether the row is one of several variations.
        """
        return None if self.weights is None else tuple(weight > 0 for weight in self.weights), self.variation is not None

    @property
    def key(self) -> EpisodeKey:
        """Of the next chunk, in an episode that has a variation."""
        return EpisodeKey(self.seed, self.variation or 0, self.chunks)


class ChunkExecutor:
    """Keeps each row's latest frames and its queue of actions; rows whose queue is empty share one call of the policy.

    The noise of a chunk depends on the seed, the episode's seed and the chunk's number alone: not on weights, variations, neighbours or the
    number of rows, so that episodes can be compared pair by pair and repeated one by one. Where episodes have variations, the policy is
    told which row is which, ``act(observation, generators, episodes=[EpisodeKey, …])``, and may differ between them.
    """

    def __init__(self, policy: Policy, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        """Wrap a policy.

        Args:
            policy: What to ask.
            seed: Of the policy's noise.
            device: Where the policy lives.
        """
        self.policy = policy
        self._seed = seed
        self._device = device
        self._rows: dict[int, _Row] = {}

    def start(self, row: int, *, seed: int, weights: Sequence[float] | None = None, variation: int | None = None) -> None:
        """Begin an episode in a row: its past is forgotten.

        Args:
            row: Any number that names it.
            seed: Of the episode.
            weights: Of a composition, for this row alone.
            variation: Names this rollout among those of the same seed; None where there is but one.
        """
        frames: deque[dict[str, NDArray[Any]]] = deque(maxlen=self.policy.history)
        self._rows[row] = _Row(seed, None if weights is None else tuple(weights), frames, variation)

    def actions(self, frames: Mapping[int, Frame]) -> dict[int, NDArray[np.float32]]:
        """The next action of every row that shows a frame.

        Args:
            frames: By row, what its environment shows now; every control step must be shown, also between chunks.

        Returns:
            By row, ``(dof,)``, physical units. A row for which the policy gives something that is not finite gets NaN, and ``summary``
            tells why; the others get theirs.

        Raises:
            ValueError: If a sensor is missing.
        """
        for row, frame in frames.items():
            self._see(self._rows[row], frame)
        hungry = [row for row in frames if not self._rows[row].queue]
        groups: dict[tuple[tuple[bool, ...] | None, bool], list[int]] = {}
        for row in hungry:
            groups.setdefault(self._rows[row].company, []).append(row)
        for group in groups.values():
            self._refill(group)
        return {row: self._rows[row].queue.popleft() for row in frames}

    def summary(self, row: int) -> dict[str, Any]:
        """What the episode in a row has cost: ``chunks``, ``latency_s`` per chunk by member, mean ``disagreement`` (nats) or None."""
        state = self._rows[row]
        return {
            "chunks": state.chunks,
            "latency_s": {name: seconds / max(1, state.chunks) for name, seconds in state.latency_s.items()},
            "disagreement": sum(state.disagreement) / len(state.disagreement) if state.disagreement else None,
            "error": state.error,
        }

    def _see(self, state: _Row, frame: Frame) -> None:
        if missing := [name for name in self.policy.sensors if name not in frame]:
            raise ValueError(f"the environment shows no {', '.join(missing)}, which the policy needs; it shows {', '.join(sorted(frame))}")
        seen = {name: np.asarray(frame[name]) for name in self.policy.sensors}
        state.frames.extend([seen] * (self.policy.history if not state.frames else 1))

    def _refill(self, rows: Sequence[int]) -> None:
        """One call of the policy for all these rows; if one of them gets an action that is not finite, a call for each."""
        try:
            self._ask(rows)
        except NonFiniteError as error:
            if len(rows) > 1:
                for row in rows:
                    self._refill([row])
                return
            state = self._rows[rows[0]]
            state.error = str(error)
            state.queue.append(np.full(self.policy.action.dof, np.nan, np.float32))

    def _ask(self, rows: Sequence[int]) -> None:
        """One call of the policy."""
        states = [self._rows[row] for row in rows]
        generators = [seeded_generator(self._seed, state.seed, state.chunks) for state in states]
        observation = self._observation(states)
        start = time.perf_counter()
        chunk = self.policy.act(observation, generators, **_extras(states))
        actions = chunk.to_execute(self.policy.execute).float().cpu()
        if not bool(torch.isfinite(actions).all()):
            raise NonFiniteError(f"the policy {getattr(self.policy, 'name', '')} gave an action that is not finite; check its checkpoint")
        latency_s = chunk.latency_s or {getattr(self.policy, "name", "") or "policy": time.perf_counter() - start}
        for index, state in enumerate(states):
            state.queue.extend(actions[index].numpy())
            _count(state, latency_s, share=1 / len(states))
            if chunk.disagreement is not None:
                state.disagreement.append(float(chunk.disagreement[index]))

    def _observation(self, states: Sequence[_Row]) -> Observation:
        values = {}
        for name in self.policy.sensors:
            values[name] = _tensor(np.stack([np.stack([frame[name] for frame in state.frames]) for state in states])).to(self._device)
        return Observation(values)


def _extras(states: Sequence[_Row]) -> dict[str, Any]:
    """What only some policies take, and only where the episodes have it."""
    extras: dict[str, Any] = {}
    if states[0].weights is not None:
        extras["weights"] = torch.tensor([state.weights for state in states])
    if states[0].variation is not None:
        extras["episodes"] = [state.key for state in states]
    return extras


def _tensor(stacked: NDArray[Any]) -> Tensor:
    """``(batch, history, ...)``; pictures become ``(batch, history, channel, height, width)`` in [0, 1]."""
    if stacked.dtype == np.uint8 and stacked.ndim == _PICTURE_AXES + 2:
        return torch.from_numpy(stacked).permute(0, 1, 4, 2, 3).float() / 255
    return torch.from_numpy(np.ascontiguousarray(stacked, dtype=np.float32))


def _count(state: _Row, latency_s: Mapping[str, float], *, share: float) -> None:
    state.chunks += 1
    for name, seconds in latency_s.items():
        state.latency_s[name] = state.latency_s.get(name, 0.0) + seconds * share
