"""One file that is a world-action model: weights, latent codec, normalisers and recipe, all in ``world_action.safetensors``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from flowrl.errors import ConfigError
from robot.learning.files import FileKind, load_parts, module_tensors, read_stats, stats_tensors
from robot.world.recipe import WorldRecipe
from robot.world.schedules import ScheduleConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from robot.normalise import NormStats
    from robot.world.recipe import WorldModules
    from robot.world_action import WorldActionModel

__all__ = ["WORLD_ACTION_MODELS", "WorldActionFile", "load_world_action", "save_world_action"]

WORLD_ACTION_MODELS = FileKind(name="world_action.safetensors", noun="world-action model", key="flowrl.world_action", recipe=WorldRecipe)


@dataclass(frozen=True, kw_only=True)
class WorldActionFile:
    """A trained world-action model as a config names it.

    Attributes:
        path: Of ``world_action.safetensors``, or the folder that ``flowrl train`` wrote, or a bundled one (``assets/…``).
        schedule: Times of frames and actions; None takes those of the file.
        task: Which of its tasks is to be done; needed where it was trained on several.
    """

    path: str
    schedule: ScheduleConfig | None = None
    task: str | None = None

    def file(self) -> Path:
        """Where it is.

        Raises:
            CheckpointError: If there is none.
        """
        return WORLD_ACTION_MODELS.find(self.path)

    def load(self, device: torch.device | str = "cpu") -> WorldActionModel:
        """The policy, ready to act.

        Raises:
            CheckpointError: If the file is missing, damaged or no world-action model.
            ConfigError: If the schedule does not fit its frames, or it does not know the task.
        """
        return load_world_action(self.path, device, schedule=self.schedule, task=self.task)


def save_world_action(
    path: Path, recipe: WorldRecipe, modules: WorldModules, stats: NormStats, training: Mapping[str, Any] | None = None
) -> Path:
    """Write a model, whole or not at all.

    Args:
        path: The file.
        recipe: What it is.
        modules: Its weights and statistics.
        stats: Normaliser of the actions.
        training: JSON-like facts about where it came from: ``config``, ``data``, ``steps``.

    Raises:
        CheckpointError: If it cannot be written.
    """
    recipe = replace(recipe, latents=modules.codec.kept(recipe.latents))
    return WORLD_ACTION_MODELS.save(path, recipe, module_tensors(modules.parts) | stats_tensors(stats), training)


def load_world_action(
    path: str | Path, device: torch.device | str = "cpu", *, schedule: ScheduleConfig | None = None, task: str | None = None
) -> WorldActionModel:
    """Read a model; its weights are frozen.

    Args:
        path: What :class:`WorldActionFile` takes.
        device: Where it will act.
        schedule: Times of frames and actions; None takes those of the file.
        task: Which of its tasks is to be done.

    Raises:
        CheckpointError: If the file is missing, truncated, altered, of a newer version or no world-action model.
        ConfigError: If the schedule does not fit its frames, or it does not know the task.
    """
    path = WORLD_ACTION_MODELS.find(path)
    recipe, tensors = WORLD_ACTION_MODELS.load(path)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and thrown away
        modules: WorldModules = recipe.build()
    load_parts(path, tensors, modules.parts, device, WORLD_ACTION_MODELS.noun)
    try:
        model: WorldActionModel = recipe.model(modules, read_stats(path, tensors), schedule, task)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return model
