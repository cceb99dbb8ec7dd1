"""Demonstrations in memory: episodes of what was seen and done, in physical units, with where they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robot.types import ActionSpec

__all__ = ["DemonstrationSource", "Demonstrations", "Episode"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """One episode of ``time`` control steps; index ``t`` is what was seen before action ``t`` and what that action led to.

    Attributes:
        observations: By sensor: float32 vectors ``(time, feature)``, keypoints ``(time, point, coordinate)``, uint8 pictures
            ``(time, height, width, 3)``.
        actions: ``(time, dof)`` float32, physical units.
        rewards: ``(time,)`` float32.
        dones: ``(time,)`` bool, whether the task ended with this step.
        success: Whether the task was solved.
        seed: That ``reset(seed=…)`` got; None if unknown.
        states: ``(time, …)``, the simulator's own state before each action, for replaying it; None where not kept.
        last: What was seen after the last action; None where not kept.
        model: The simulator's model as text, which robomimic needs to replay robosuite's states; None where there is none.

    Raises:
        ValueError: If there is no step, the lengths differ, or an action or observation is not finite.
    """

    observations: Mapping[str, NDArray[Any]]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    dones: NDArray[np.bool_]
    success: bool
    seed: int | None = None
    states: NDArray[Any] | None = None
    last: Mapping[str, NDArray[Any]] | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "observations", {name: _narrow(value) for name, value in self.observations.items()})
        object.__setattr__(self, "actions", np.asarray(self.actions, np.float32))
        object.__setattr__(self, "rewards", np.asarray(self.rewards, np.float32))
        object.__setattr__(self, "dones", np.asarray(self.dones, np.bool_))
        object.__setattr__(self, "last", None if self.last is None else {name: _narrow(value) for name, value in self.last.items()})
        self._check_lengths()
        self._check_values()

    def _check_lengths(self) -> None:
        if self.actions.ndim != 2 or not self.actions.size:  # noqa: PLR2004
            raise ValueError(f"an episode needs actions (time, dof) of at least one step, got shape {self.actions.shape}")
        if not self.observations:
            raise ValueError("an episode needs the observations of at least one sensor, got none")
        series = {f"observations[{name!r}]": value for name, value in self.observations.items()}
        series |= {"rewards": self.rewards, "dones": self.dones} | ({} if self.states is None else {"states": self.states})
        wrong = [
            f"{name} {len(value) if value.ndim else 'no'}" for name, value in series.items() if value.ndim == 0 or len(value) != len(self)
        ]
        if wrong:
            raise ValueError(f"an episode of {len(self)} actions needs as many steps of everything, got {', '.join(wrong)}")
        shapes = {name: value.shape[1:] for name, value in self.observations.items()}
        if self.last is not None and {name: value.shape for name, value in self.last.items()} != shapes:
            raise ValueError(f"the last frame must have the sensors and shapes of the others: {shapes}")

    def _check_values(self) -> None:
        for name, value in {"actions": self.actions, **self.observations}.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(f"{name} of the episode with seed {self.seed} are NaN or infinite; drop the episode")

    def __len__(self) -> int:
        return len(self.actions)

    def only(self, sensors: Sequence[str]) -> Episode:
        """The same episode with some sensors.

        Raises:
            ValueError: If there is no such sensor.
        """
        if missing := [name for name in sensors if name not in self.observations]:
            raise ValueError(f"there are no observations of {', '.join(missing)}; sensors: {', '.join(sorted(self.observations))}")
        last = None if self.last is None else {name: self.last[name] for name in sensors}
        return replace(self, observations={name: self.observations[name] for name in sensors}, last=last)


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstrations:
    """Episodes of one task by one kind of action.

    Attributes:
        episodes: At least one, all with the same sensors.
        action: What an action means.
        env: Where they were recorded, JSON-like: robomimic's ``env_args`` (``env_name``, ``type``, ``env_kwargs``); empty if unknown.

    Raises:
        ValueError: If there is no episode, or they differ in sensors, shapes or dimensions of an action.
    """

    episodes: tuple[Episode, ...]
    action: ActionSpec
    env: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "episodes", tuple(self.episodes))
        if not self.episodes:
            raise ValueError("demonstrations need at least one episode, got none")
        shapes = _shapes(self.episodes[0])
        for index, episode in enumerate(self.episodes):
            if _shapes(episode) != shapes:
                raise ValueError(f"episode {index} shows {_shapes(episode)}, episode 0 {shapes}; all must have the same sensors and shapes")
            if episode.actions.shape[1] != self.action.dof:
                raise ValueError(
                    f"episode {index} has actions of {episode.actions.shape[1]} dimensions, "
                    f"but the action has {self.action.dof}: {self.action.names}"
                )

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def sensors(self) -> tuple[str, ...]:
        """Names of the sensors, sorted."""
        return tuple(sorted(self.episodes[0].observations))

    @property
    def steps(self) -> int:
        """Control steps of all episodes together."""
        return sum(len(episode) for episode in self.episodes)

    @property
    def successes(self) -> int:
        """Episodes in which the task was solved."""
        return sum(episode.success for episode in self.episodes)

    def only(self, sensors: Sequence[str]) -> Demonstrations:
        """The same episodes with some sensors.

        Raises:
            ValueError: If there is no such sensor.
        """
        return replace(self, episodes=tuple(episode.only(sensors) for episode in self.episodes))

    def sha256(self) -> str:
        """Fingerprint of what a policy learns from: observations, actions, their meaning and order; not rewards or seeds."""
        digest = hashlib.sha256()
        spec = self.action
        digest.update(json.dumps([spec.names, float(spec.control_rate_hz), spec.rotation, self.sensors]).encode())
        for episode in self.episodes:
            for value in (episode.actions, *(episode.observations[name] for name in self.sensors)):
                digest.update(f"{value.dtype.str}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()


@runtime_checkable
class DemonstrationSource(Protocol):
    """Demonstrations as a config describes them: files on disk, or another source with a filter."""

    def load(self) -> Demonstrations:
        """Read them.

        Raises:
            ValueError: If they are missing, damaged or not what the source says.
        """
        ...


def _narrow(value: NDArray[Any]) -> NDArray[Any]:
    """Numbers as float32, pictures as they are."""
    value = np.asarray(value)
    return value if value.dtype == np.uint8 else value.astype(np.float32, copy=False)


def _shapes(episode: Episode) -> dict[str, tuple[int, ...]]:
    return {name: value.shape[1:] for name, value in sorted(episode.observations.items())}
