"""A policy of chunks as LeRobot drives it: one batch of frames a control step, one action back; all rows in step."""

from __future__ import annotations

from collections import deque
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from flowrl.shapes import seeded_generator
from robot.types import Observation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from robot.types import Policy

__all__ = ["BatchDriver", "with_task"]


class BatchDriver:
    """Keeps the latest frames and the queue of actions between LeRobot's calls.

    The noise of a chunk depends on the seed, the number of the episode batch, the row and the chunk's number alone.
    """

    def __init__(self, policy: Policy, *, seed: int = 0, rename: Mapping[str, str] | None = None) -> None:
        """Wrap a policy.

        Args:
            policy: What to ask.
            seed: Of the policy's noise.
            rename: LeRobot's key for each sensor that it calls otherwise: ``{"agent_pos": "observation.state"}``.
        """
        self.policy = policy
        self._seed, self._rename = seed, dict(rename or {})
        self._episode = -1
        self.reset()

    def reset(self) -> None:
        """Begin the next batch of episodes."""
        self._frames: deque[dict[str, Tensor]] = deque(maxlen=self.policy.history)
        self._queue: deque[Tensor] = deque()
        self._episode, self._chunks = self._episode + 1, 0

    def next_action(self, batch: Mapping[str, Any]) -> Tensor:
        """The action of this control step, ``(batch, dof)``, physical units.

        Args:
            batch: LeRobot's observation: ``(batch, feature)`` and pictures ``(batch, channel, height, width)`` in [0, 1] by key.

        Raises:
            ValueError: If a sensor is missing.
        """
        self._see(batch)
        if not self._queue:
            self._queue.extend(self._chunk().unbind(1))
        return self._queue.popleft()

    def next_chunk(self, batch: Mapping[str, Any]) -> Tensor:
        """The actions to execute from this control step on, ``(batch, step, dof)``, physical units; see :meth:`next_action`."""
        self._see(batch)
        return self._chunk()

    def _see(self, batch: Mapping[str, Any]) -> None:
        keys = {sensor: self._rename.get(sensor, sensor) for sensor in self.policy.sensors}
        if missing := [key for key in keys.values() if key not in batch]:
            raise ValueError(
                f"LeRobot's batch has no {', '.join(missing)}; it has {', '.join(sorted(batch))}; name them with policy.rename"
            )
        frame = {sensor: batch[key] for sensor, key in keys.items()}
        self._frames.extend([frame] * (1 if self._frames else self.policy.history))

    def _chunk(self) -> Tensor:
        frames = list(self._frames)
        observation = Observation({name: torch.stack([frame[name] for frame in frames], 1) for name in frames[0]})
        generators = [seeded_generator(self._seed, self._episode, row, self._chunks) for row in range(len(observation))]
        self._chunks += 1
        return self.policy.act(observation, generators).to_execute(self.policy.execute)


def with_task(policy: Any, task: str) -> Any:
    """The policy, told what to do: every member that reads language gets it.

    Args:
        policy: Any policy, also a composition.
        task: What to do, in words.
    """
    if not is_dataclass(policy) or isinstance(policy, type):
        return policy
    names = {field.name for field in fields(policy)}
    if "policies" in names:
        return replace(policy, policies=tuple(with_task(member, task) for member in policy.policies))  # type: ignore[attr-defined]
    told = {name: task for name in ("task", "prompt") if name in names}
    return replace(policy, **told) if told else policy
