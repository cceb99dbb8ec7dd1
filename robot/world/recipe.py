"""What a world-action model is besides its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from robot.learning.encoders import EncoderConfig, ObservationEncoder, SensorStats
from robot.learning.recipe import check_chunk
from robot.types import ActionSpec
from robot.world.latents import LatentCodec, LatentConfig
from robot.world.layout import Layout
from robot.world.network import JointTransformer, MixtureOfTransformers
from robot.world.schedules import ScheduleConfig, SharedSchedule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from robot.normalise import NormStats
    from robot.world_action import WorldActionModel

__all__ = ["WorldModules", "WorldRecipe"]


@dataclass(frozen=True, kw_only=True, eq=False)
class WorldModules:
    """The networks of a world-action model.

    Attributes:
        codec: Frames to latents; not trained here.
        network: Velocities of frames and actions.
        encoder: What else is observed, to features; None for nothing.
    """

    codec: LatentCodec
    network: JointTransformer
    encoder: ObservationEncoder | None

    @property
    def parts(self) -> dict[str, nn.Module]:
        """By name, as in a file."""
        parts: dict[str, nn.Module] = {"codec": self.codec, "network": self.network}
        return parts if self.encoder is None else parts | {"encoder": self.encoder}


@dataclass(frozen=True, kw_only=True)
class WorldRecipe:
    """All that a world-action model is besides its weights; the checkpoint fixes it.

    Attributes:
        latents: Frames to latents.
        network: The backbone.
        encoder: What else is observed; None for nothing.
        sensors: Name and shape of one frame of each sensor that it needs, as a policy sees it.
        action: What its actions mean.
        frames: Predicted frames.
        stride: Control steps between them; the first is so many steps ahead.
        observed: Latest frames that it is shown.
        horizon: Control steps of a chunk, the present one first.
        execute: Actions of a chunk to execute before the next one is asked for.
        schedule: Times of frames and actions when it acts.
        clip: Bound on the actions, normalised units; None for none.
        tasks: Names of the tasks that it was trained on; empty for a single one.
        name: For reports.

    Raises:
        ConfigError: If the executed actions do not lie inside the chunk.
    """

    latents: LatentConfig
    network: MixtureOfTransformers
    encoder: EncoderConfig | None
    sensors: tuple[tuple[str, tuple[int, ...]], ...]
    action: ActionSpec
    frames: int
    stride: int
    observed: int
    horizon: int
    execute: int
    schedule: ScheduleConfig = field(default_factory=SharedSchedule)
    clip: float | None = 1.0
    tasks: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        check_chunk(self.horizon, 0, self.execute)

    def build(self, stats: Mapping[str, SensorStats] | None = None) -> WorldModules:
        """Codec, network and encoder with fresh weights from torch's global generator.

        Args:
            stats: Of the sensors; None where weights and statistics will be loaded.
        """
        stats = stats or {name: SensorStats(shape=tuple(shape)) for name, shape in self.sensors}
        codec = self.latents.build(stats)
        encoder = None if self.encoder is None else self.encoder.build(stats)
        layout = Layout(frames=self.frames, tokens=codec.tokens, channels=codec.channels, horizon=self.horizon, dof=self.action.dof)
        features = (0 if encoder is None else encoder.width) + len(self.tasks)
        return WorldModules(codec=codec, network=self.network.build(layout, observed=self.observed, features=features), encoder=encoder)

    def model(
        self, modules: WorldModules, stats: NormStats, schedule: ScheduleConfig | None = None, task: str | None = None
    ) -> WorldActionModel:
        """The policy that these modules make.

        Args:
            modules: Built by this recipe.
            stats: Normaliser of the actions.
            schedule: Instead of its own.
            task: Which of its tasks is to be done; needed where it has several, None takes the only one.

        Raises:
            ValueError: If the schedule does not fit the frames, or there is no such task.
        """
        from robot.world_action import WorldActionModel

        return WorldActionModel(
            codec=modules.codec,
            network=modules.network,
            encoder=modules.encoder,
            stats=stats,
            action=self.action,
            stride=self.stride,
            execute=self.execute,
            schedule=(schedule or self.schedule).build(self.frames),
            tasks=self.tasks,
            task=self.tasks[0] if task is None and len(self.tasks) == 1 else task,
            clip=self.clip,
            name=self.name,
        )
