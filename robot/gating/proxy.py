"""A reward without a simulator: how close the drawn actions come to demonstrated ones that the model was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flowrl.errors import ConfigError
from flowrl.shapes import seeded_generator
from robot.demonstrations.data import DemonstrationSource
from robot.execution import EpisodeKey
from robot.gating.scores import Scores
from robot.learning.files import NamesFile
from robot.learning.material import Batches
from robot.learning.windows import Windows, split_episodes
from robot.world.checkpoint import WORLD_ACTION_MODELS
from robot.world.tasks import TASK_SENSOR

if TYPE_CHECKING:
    from torch import Tensor

    from robot.demonstrations.data import Episode
    from robot.gating.rollouts import Explorer
    from robot.world_action import WorldActionModel

__all__ = ["ActionErrorWarmUp", "HeldOut"]

_STREAM = 17  # tells these draws from others with the same seed


@dataclass(frozen=True, kw_only=True)
class ActionErrorWarmUp:
    """First updates on demonstrations: the reward of a chunk is minus the error of its executed actions.

    Cheap and dense, but only a proxy: the schedule that imitates best need not act best, and where there are several ways to act an error
    is left however good the model.

    Attributes:
        demonstrations: Those that the model was trained on; the episodes that were held out then are used.
        updates: How many.
        chunks: Control steps of the demonstrations per update, each a group.
        held_out: Share of the episodes that the training of the model held out.
        split_seed: ``seed`` of that training, which decided which ones.

    Raises:
        ConfigError: If a number is out of range.
    """

    demonstrations: DemonstrationSource
    updates: int = 20
    chunks: int = 64
    held_out: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.updates < 1 or self.chunks < 1 or not 0 < self.held_out < 1:
            given = f"updates={self.updates}, chunks={self.chunks}, held_out={self.held_out}"
            raise ConfigError(f"a warm-up needs updates >= 1, chunks >= 1 and held_out in (0, 1), got {given}; leave warm_up out for none")

    def check_split(self, source: object) -> None:
        """Refuse another split than the model was trained with: it would imitate episodes that the model has seen.

        Args:
            source: Of the model; one without a file cannot be checked.

        Raises:
            ConfigError: If its file tells another share or seed.
        """
        if not isinstance(source, NamesFile):
            return
        trained = WORLD_ACTION_MODELS.read_training(source.file()).get("config", {})
        theirs = (trained.get("validation_share", self.held_out), trained.get("seed", self.split_seed))
        if theirs != (self.held_out, self.split_seed):
            raise ConfigError(
                f"warm_up: the model was trained with validation_share={theirs[0]} and seed={theirs[1]}; set held_out and split_seed to "
                f"these instead of {self.held_out} and {self.split_seed}, or it imitates episodes that it has learned from"
            )

    def load(self, model: WorldActionModel) -> Windows:
        """The held-out episodes as chunks of the model; of several tasks, those of the one that it is to do.

        Args:
            model: Whose sensors, history and horizon they are cut to.

        Raises:
            ConfigError: If the demonstrations are of other actions, or lack a sensor.
        """
        demonstrations = self.demonstrations.load()
        if demonstrations.action != model.action:
            raise ConfigError(
                f"the demonstrations act by {demonstrations.action.names}, the model by {model.action.names}; warm up on demonstrations of "
                "the model's own kind"
            )
        episodes = _of_the_task(model, split_episodes(demonstrations, self.held_out, self.split_seed)[1])
        if episodes and (missing := [name for name in model.sensors if name not in episodes[0].observations]):
            raise ConfigError(f"the demonstrations lack {', '.join(missing)}, which the model reads")
        return Windows.of(episodes, model.sensors, horizon=model.horizon, history=model.history, first=0)


def _of_the_task(model: WorldActionModel, episodes: list[Episode]) -> list[Episode]:
    if model.task is None or not episodes or TASK_SENSOR not in episodes[0].observations:
        return episodes
    place = model.tasks.index(model.task)
    return [episode for episode in episodes if episode.observations[TASK_SENSOR][0, place] == 1]


class HeldOut:
    """Chunks to imitate, in an order that a seed determines."""

    def __init__(self, warm_up: ActionErrorWarmUp, model: WorldActionModel, *, seed: int, rows: int) -> None:
        """Load them.

        Args:
            warm_up: Which.
            model: Who imitates.
            seed: Of the order and the base noise.
            rows: The largest batch of the model.
        """
        self._windows, self._model = warm_up.load(model).to(model.device), model
        self._batches = Batches(len(self._windows), warm_up.chunks, seed)
        self._seed, self._rows = seed, rows

    def play(self, explorer: Explorer, update: int, group_size: int) -> Scores:
        """Let an explorer draw every chunk ``group_size`` times from the same base noise.

        Args:
            explorer: Keeps its decisions.
            update: Which chunks.
            group_size: Draws of each.

        Returns:
            ``action``: minus the root-mean-square distance from the demonstrated actions, over those that are executed, normalised units.
        """
        rows = self._batches.rows(update).repeat_interleave(group_size)
        places = torch.arange(len(rows))
        errors = torch.cat([self._errors(explorer, update, rows[part], part // group_size, part) for part in places.split(self._rows)])
        return Scores(
            values=-errors[:, None].double().cpu(),
            weights={"action": 1.0},
            group_size=group_size,
            valid=torch.ones(len(rows), dtype=torch.bool),
        )

    def _errors(self, explorer: Explorer, update: int, rows: Tensor, slots: Tensor, places: Tensor) -> Tensor:
        generators = [seeded_generator(self._seed, _STREAM, update, slot) for slot in slots.tolist()]
        keys = [EpisodeKey(row, place, 0) for row, place in zip(rows.tolist(), places.tolist(), strict=True)]
        drawn = explorer.act(self._windows.observation(rows), generators, keys).to_execute(self._model.execute)
        wanted = self._windows.chunks(rows)[:, : self._model.execute]
        normalise = self._model.stats.normalise
        return (normalise(drawn) - normalise(wanted)).square().flatten(1).mean(1).sqrt()
