"""What training learns from: checked demonstrations, cut into windows, with the normalisers they imply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from flowrl.errors import ConfigError, close_match
from flowrl.shapes import seeded_generator
from robot.learning.encoders import SensorStats
from robot.learning.windows import Windows, sensor_stats, split_episodes
from robot.normalise import NormStats
from robot.types import ActionSpec

if TYPE_CHECKING:
    from robot.demonstrations.data import Demonstrations, Episode

__all__ = ["Batches", "Choices", "Cut", "Material", "check_clip"]

_ROUNDING = 1e-4


class Choices(Protocol):
    """What a job says about its data."""

    @property
    def validation_share(self) -> float:
        """Of the episodes, which are held out."""
        ...

    @property
    def seed(self) -> int:
        """Of the split."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Into what episodes are cut; see :meth:`robot.learning.Windows.of`.

    Attributes:
        sensors: What is seen.
        horizon: Control steps of a chunk.
        history: Frames that are seen.
        first: Index of the present in a chunk.
        ahead: Control steps to future frames.
        scaling: How actions are normalised, a constructor of :class:`robot.normalise.NormStats`.
    """

    sensors: tuple[str, ...]
    horizon: int
    history: int
    first: int = 0
    ahead: tuple[int, ...] = ()
    scaling: str = "min_max"

    def windows(self, episodes: Sequence[Episode]) -> Windows:
        """Of some episodes."""
        return Windows.of(episodes, self.sensors, horizon=self.horizon, history=self.history, first=self.first, ahead=self.ahead)


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """Demonstrations, ready to be learned from.

    Attributes:
        train: Windows to train on.
        validation: Windows of the episodes that were held out; None where there are none.
        stats: Normaliser of the actions.
        sensors: Shape and range of every sensor that the policy needs.
        action: What an action means.
        facts: What the checkpoint keeps of it: ``sha256``, ``episodes``, ``steps``, ``env``.
    """

    train: Windows
    validation: Windows | None
    stats: NormStats
    sensors: Mapping[str, SensorStats]
    action: ActionSpec
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, demonstrations: Demonstrations, cut: Cut, choices: Choices) -> Material:
        """Check and cut demonstrations.

        Args:
            demonstrations: All episodes.
            cut: Into what.
            choices: What to hold out.

        Raises:
            ConfigError: If there is no episode, a sensor is missing, or a number is not finite.
        """
        _check(demonstrations, cut.sensors)
        train, held_out = split_episodes(demonstrations, choices.validation_share, choices.seed)
        windows, ranges = cut.windows(train), sensor_stats(train)
        stats: NormStats = getattr(NormStats, cut.scaling)(windows.actions)
        return cls(
            train=windows,
            validation=cut.windows(held_out) if held_out else None,
            stats=stats,
            sensors={name: ranges[name] for name in cut.sensors},
            action=demonstrations.action,
            facts=_facts(demonstrations, len(held_out)),
        )


class Batches:
    """Which windows each step sees: every one once per epoch, in an order that the seed and the epoch determine."""

    def __init__(self, windows: int, size: int, seed: int) -> None:
        """Nothing is drawn yet.

        Args:
            windows: How many there are.
            size: Of a batch.
            seed: Of the order.
        """
        self._windows, self._size, self._seed = windows, size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def rows(self, step: int) -> Tensor:
        """The windows of a step, ``(size,)``; a batch may reach into the next epoch."""
        found: list[Tensor] = []
        place, left = step * self._size, self._size
        while left:
            epoch, offset = divmod(place, self._windows)
            found.append(self._order_of(epoch)[offset : offset + left])
            place, left = place + len(found[-1]), left - len(found[-1])
        return torch.cat(found)

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.randperm(self._windows, generator=seeded_generator(self._seed, 1, epoch))
        return self._order


def _check(demonstrations: Demonstrations, needs: Sequence[str]) -> None:
    if not demonstrations.episodes:
        raise ConfigError("there are no episodes to learn from; record some, or loosen the filter of the demonstrations")
    has = demonstrations.episodes[0].observations
    for name in needs:
        if name not in has:
            raise ConfigError(f"the model needs the sensor {name!r}, which the demonstrations do not have{close_match(name, has)}")
    for index, episode in enumerate(demonstrations.episodes):
        _check_finite(index, episode, needs)


def _check_finite(index: int, episode: Episode, needs: Sequence[str]) -> None:
    for name, values in {"actions": episode.actions, **{name: episode.observations[name] for name in needs}}.items():
        frames = torch.as_tensor(values)
        if frames.is_floating_point() and not bool((good := frames.flatten(1).isfinite().all(1)).all()):
            raise ConfigError(f"{name} of episode {index} are not finite at control step {int((~good).nonzero()[0])}; drop the episode")


def check_clip(material: Material, clip: float | None, scaling: str, place: str) -> None:
    """Refuse a clip that cuts actions which a policy is to imitate: it would bias them.

    Args:
        material: What is imitated.
        clip: Bound on normalised actions; None for none.
        scaling: How they were normalised, for the message.
        place: Of the clip in the configuration, for the message.

    Raises:
        ConfigError: If it does.
    """
    reach = float(material.stats.normalise(material.train.actions).abs().max())
    if clip is not None and reach > clip * (1 + _ROUNDING):
        raise ConfigError(
            f"{place}={clip:g} would cut demonstrated actions, which reach {reach:.3g} after {scaling}; "
            f"set {place} to null or at least {reach:.3g}, or use action_scaling=min_max"
        )


def _facts(demonstrations: Demonstrations, held_out: int) -> dict[str, Any]:
    return {
        "sha256": demonstrations.sha256(),
        "episodes": len(demonstrations.episodes),
        "held_out": held_out,
        "steps": sum(len(episode) for episode in demonstrations.episodes),
        "env": dict(demonstrations.env),
    }
