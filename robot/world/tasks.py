"""Demonstrations of several tasks as one: every frame says which task it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from flowrl.errors import ConfigError
from robot.demonstrations.data import Demonstrations, DemonstrationSource

if TYPE_CHECKING:
    from robot.demonstrations.data import Episode

__all__ = ["TASK_SENSOR", "Tasks"]

TASK_SENSOR = "task"
"""Sensor that shows the task one-hot, ``(task,)``."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Demonstrations of several tasks for one model, which learns an embedding of each; evaluation names the task.

    Attributes:
        tasks: By the task's name; the order is part of the model.

    Raises:
        ValueError: If there is no task.
    """

    tasks: Mapping[str, DemonstrationSource]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("Tasks needs at least one task: a mapping of names to demonstrations")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks."""
        return tuple(self.tasks)

    def load(self) -> Demonstrations:
        """All episodes, task by task, with the sensor :data:`TASK_SENSOR`.

        Raises:
            ConfigError: If the tasks differ in their actions or sensors.
        """
        loaded = {name: source.load() for name, source in self.tasks.items()}
        first, *_ = loaded.values()
        episodes: list[Episode] = []
        for place, (name, part) in enumerate(loaded.items()):
            self._check(name, part, first)
            mark = np.eye(len(loaded), dtype=np.float32)[place]
            episodes += [_marked(episode, mark) for episode in part.episodes]
        return Demonstrations(
            episodes=tuple(episodes), action=first.action, env={"tasks": {name: dict(part.env) for name, part in loaded.items()}}
        )

    def _check(self, name: str, part: Demonstrations, first: Demonstrations) -> None:
        if part.action != first.action:
            raise ConfigError(
                f"the task {name!r} has the actions {part.action}, the task {self.names[0]!r} {first.action}; one model needs one kind"
            )
        if TASK_SENSOR in part.sensors:
            raise ConfigError(
                f"the demonstrations of {name!r} have a sensor {TASK_SENSOR!r} of their own; leave it out when they are recorded"
            )
        shapes = [{sensor: value.shape[1:] for sensor, value in each.episodes[0].observations.items()} for each in (first, part)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"the task {name!r} shows {shapes[1]}, the task {self.names[0]!r} {shapes[0]}; one model needs the same sensors"
            )


def _marked(episode: Episode, mark: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Episode:
    last = None if episode.last is None else {**episode.last, TASK_SENSOR: mark}
    return replace(episode, observations={**episode.observations, TASK_SENSOR: np.tile(mark, (len(episode), 1))}, last=last)
