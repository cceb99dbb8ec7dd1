"""Training a world-action model on demonstrations, as a config says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch

from flowrl.errors import ConfigError
from flowrl.shapes import seeded_generator
from flowrl.train.grids import save_png
from robot.demonstrations.data import DemonstrationSource
from robot.learning.blocks import require_positive
from robot.learning.encoders import EncoderConfig
from robot.learning.files import FileKind, digest
from robot.learning.lesson import Curve, Lesson, Training
from robot.learning.material import Cut, Material, check_clip
from robot.learning.recipe import check_chunk
from robot.world.checkpoint import WORLD_ACTION_MODELS, save_world_action
from robot.world.dreamer import Dreamer, LatentWindows
from robot.world.imagine import can_draw, imagine_windows
from robot.world.latents import LatentConfig
from robot.world.network import MixtureOfTransformers
from robot.world.recipe import WorldRecipe
from robot.world.schedules import ScheduleConfig, SharedSchedule
from robot.world.tasks import TASK_SENSOR, Tasks
from robot.world.times import IndependentTimes, TrainingTimes
from robot.world.validation import CURVES, validate

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from robot.learning.windows import Windows
    from robot.world.recipe import WorldModules

__all__ = ["WorldActionTraining"]

IMAGINED, _DRAWN = "imagined.png", 3


@dataclass(frozen=True, kw_only=True)
class WorldActionTraining(Training):
    """Train a world-action model; :class:`robot.learning.lesson.Training` has the fields that are common to such jobs.

    Every control step of an episode is the present of one chunk, together with the frames ``stride``, ``2·stride``, … steps later; past an
    episode's end its last frame and action are repeated. Frames and actions are learned by flow matching, each stream's error averaged over
    its own numbers. What it leaves is ``world_action.safetensors``.

    Attributes:
        demonstrations: What is imitated; several tasks as :class:`robot.world.Tasks`.
        latents: Frames to latents.
        encoder: What else is observed, such as a goal; None for nothing.
        network: The backbone.
        frames: Predicted frames.
        stride: Control steps between them.
        observed: Latest frames that the model is shown.
        horizon: Control steps of a chunk, the present one first.
        execute: Actions of a chunk that will be executed before the next one.
        times: Noise levels to train at.
        video_weight: Of the frames' error against the actions', >= 0.
        schedule: Times of frames and actions when the model acts; kept in its checkpoint.
        clip: Bound on the actions when it acts, normalised units; None for none.
        action_scaling: Actions to [−1, 1] by their range or their 1 % and 99 % quantiles, or to mean 0 and standard deviation 1.

    Raises:
        ConfigError: If a number is out of range or the executed actions do not lie inside the chunk.
    """

    title: ClassVar[str] = "world-action model"
    kind: ClassVar[FileKind] = WORLD_ACTION_MODELS
    curves: ClassVar[tuple[Curve, ...]] = CURVES
    pictures: ClassVar[Mapping[str, str]] = {
        IMAGINED: "Held-out episodes: what came, and what the model imagined at the same control steps under its own schedule; points of "
        "what came lie as rings behind the imagined ones."
    }
    shown: ClassVar[tuple[str, ...]] = ("latents", "encoder", "network", "times", "frames", "stride", "horizon", "execute", "seed")

    demonstrations: DemonstrationSource
    latents: LatentConfig
    encoder: EncoderConfig | None = None
    network: MixtureOfTransformers = field(default_factory=MixtureOfTransformers)
    frames: int = 4
    stride: int = 4
    observed: int = 1
    horizon: int = 16
    execute: int = 8
    times: TrainingTimes = field(default_factory=IndependentTimes)
    video_weight: float = 1.0
    schedule: ScheduleConfig = field(default_factory=SharedSchedule)
    clip: float | None = 1.0
    action_scaling: Literal["min_max", "quantiles", "mean_std"] = "min_max"
    steps: int = 5000
    ema_decay: float | None = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            require_positive(self, "frames", "stride", "observed")
            self.schedule.build(self.frames)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not self.video_weight >= 0:
            raise ConfigError(f"video_weight must be >= 0, got {self.video_weight}; 1 weighs frames and actions alike")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip must be > 0, got {self.clip}; null leaves actions as they are")
        check_chunk(self.horizon, 0, self.execute)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks; empty for a single one."""
        return self.demonstrations.names if isinstance(self.demonstrations, Tasks) else ()

    @property
    def beside(self) -> tuple[str, ...]:
        """Sensors that are seen as they are."""
        return (*(self.encoder.needs if self.encoder else ()), *((TASK_SENSOR,) if self.tasks else ()))

    def cut(self) -> Cut:
        """Into what episodes are cut."""
        return Cut(
            sensors=tuple(dict.fromkeys((*self.latents.needs, *self.beside))),
            horizon=self.horizon,
            history=max(self.observed, self.encoder.history if self.encoder else 1),
            ahead=tuple(self.stride * place for place in range(1, self.frames + 1)),
            scaling=self.action_scaling,
        )

    def lesson(self) -> WorldActionLesson:
        """See :class:`robot.learning.lesson.Training`."""
        return WorldActionLesson(self)


class WorldActionLesson(Lesson):
    """Windows as latents, and the networks that predict them.

    Attributes:
        material: The demonstrations.
        recipe: What the model is.
    """

    source = "demonstrations or latents"

    def __init__(self, job: WorldActionTraining) -> None:
        """Load and check the data."""
        self.material = Material.of(job.demonstrations.load(), job.cut(), job)
        check_clip(self.material, job.clip, f"action_scaling={job.action_scaling}", "clip")
        self.facts, self.examples = self.material.facts, len(self.material.train)
        self.recipe = WorldRecipe(
            latents=job.latents,
            network=job.network,
            encoder=job.encoder,
            sensors=tuple((name, stats.shape) for name, stats in self.material.sensors.items() if name != TASK_SENSOR),
            action=self.material.action,
            frames=job.frames,
            stride=job.stride,
            observed=job.observed,
            horizon=job.horizon,
            execute=job.execute,
            schedule=job.schedule,
            clip=job.clip,
            tasks=job.tasks,
            name=job.called,
        )
        self._job = job
        self._modules: WorldModules
        self._train: LatentWindows
        self._validation: LatentWindows | None = None

    @property
    def fingerprint(self) -> str:
        """Of the demonstrations, and of the codec where that was learned."""
        codec = self._modules.codec
        data = str(self.facts["sha256"])
        if next(codec.parameters(), None) is None:
            return data
        weights = digest({name: value.cpu() for name, value in codec.state_dict().items()}, {})
        return hashlib.sha256(f"{data} {weights}".encode()).hexdigest()

    def begin(self, device: torch.device) -> Dreamer:
        """See :class:`Lesson`."""
        self._modules = self.recipe.build(self.material.sensors)
        self._modules.codec.requires_grad_(requires_grad=False).eval().to(device)
        self._train = self._encoded(self.material.train.to(device))
        if self.material.validation is not None:
            self._validation = self._encoded(self.material.validation.to(device))
        return Dreamer(self._modules).to(device)

    def loss(self, module: nn.Module, rows: Tensor, part: slice, step: int) -> Tensor:
        """See :class:`Lesson`."""
        job, windows, layout = self._job, self._train, self._modules.network.layout
        device, generator = windows.latents.actions.device, seeded_generator(job.seed, 2, step)
        noise = layout.noise(job.batch_size, generator)[part].to(device)
        times = job.times.draw(job.batch_size, job.frames, generator)[part].to(device)
        draws = None
        if self._modules.encoder is not None and self._modules.encoder.draws:
            draws = torch.rand(job.batch_size, self._modules.encoder.draws, generator=generator)[part].to(device)
        data = layout.pack(windows.future(rows), self.material.stats.normalise(windows.latents.chunks(rows)))
        video, action = cast("Tensor", module(data, noise, times, *windows.shown(rows), draws)).mean(0).unbind()
        return job.video_weight * video + action

    def validate(self, module: nn.Module) -> dict[str, float]:
        """See :class:`Lesson`."""
        if self._validation is None:
            return {}
        self._draw(module.eval())
        return validate(self._job, cast("Dreamer", module.train()), self._validation, self.material.stats)

    def _draw(self, module: nn.Module) -> None:
        """What the model imagines at a few held-out control steps, of the first task where there are several; nothing for bare numbers."""
        windows, sensors = self.material.validation, dict(self.recipe.sensors)
        if windows is None or not can_draw(sensors[name] for name in self._modules.codec.sensors):
            return
        rows = torch.randperm(len(windows), generator=seeded_generator(self._job.seed, 6))
        if self._job.tasks:
            rows = rows[windows.frames[TASK_SENSOR][windows.seen[rows, -1], 0] == 1]
        if not len(rows):
            return
        model = self.recipe.model(self._modules, self.material.stats, task=next(iter(self._job.tasks), None))
        device = next(module.parameters()).device
        imagined = imagine_windows(model, windows.to(device), rows[:_DRAWN], seeded_generator(self._job.seed, 7))
        save_png(imagined.picture(), self._job.folder / IMAGINED)

    def save(self, path: Path, module: nn.Module, training: Mapping[str, Any]) -> None:
        """See :class:`Lesson`."""
        del module  # its parts are those of ``begin``
        save_world_action(path, self.recipe, self._modules, self.material.stats, training)

    def _encoded(self, windows: Windows) -> LatentWindows:
        return LatentWindows.of(windows, self._modules.codec, self._job.beside, self._job.observed)
