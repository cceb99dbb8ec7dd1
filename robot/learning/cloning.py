"""Behaviour cloning: a policy from demonstrations, as a config says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from robot.composition import Sampling
from robot.demonstrations.data import DemonstrationSource
from robot.learning.blocks import NetworkConfig
from robot.learning.checkpoint import POLICIES, save_policy
from robot.learning.encoders import EncoderConfig
from robot.learning.files import FileKind
from robot.learning.imitator import Draws, Imitator
from robot.learning.lesson import Curve, Lesson, Training
from robot.learning.material import Cut, Material, check_clip
from robot.learning.process import Process
from robot.learning.recipe import Recipe, check_chunk
from robot.learning.validation import validate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch import Tensor, nn


__all__ = ["BehaviourCloning"]


@dataclass(frozen=True, kw_only=True)
class BehaviourCloning(Training):
    """Train a policy on demonstrations; :class:`robot.learning.lesson.Training` has the fields that are common to such jobs.

    Every control step of an episode is the present of one chunk; before an episode's first and after its last step the nearest frame and
    action are repeated, so that a horizon longer than an episode is padded. What it leaves is ``policy.safetensors``.

    Attributes:
        demonstrations: What is imitated.
        process: Diffusion or flow.
        encoder: Which sensors are seen, and how.
        network: The backbone.
        sampling: How the policy draws its chunks; kept in its checkpoint.
        horizon: Control steps of a chunk.
        execute: Actions of a chunk that will be executed before the next one.
        first: Index of the present control step in a chunk; None lets a chunk begin at the oldest frame seen (``history − 1``), as
            Diffusion Policy does.
        action_scaling: Actions to [−1, 1] by their range or their 1 % and 99 % quantiles, or to mean 0 and standard deviation 1.

    Raises:
        ConfigError: If a number is out of range or the executed actions do not lie inside the chunk.
    """

    title: ClassVar[str] = "behaviour cloning"
    kind: ClassVar[FileKind] = POLICIES
    curves: ClassVar[tuple[Curve, ...]] = (
        Curve(
            title="Action error",
            note="Root-mean-square distance of sampled from demonstrated actions over the executed steps, normalised units. Several ways "
            "to act leave an error however good the policy.",
            lines={"eval/action_error": "held-out episodes"},
        ),
    )
    shown: ClassVar[tuple[str, ...]] = ("process", "encoder", "network", "horizon", "execute", "seed")

    demonstrations: DemonstrationSource
    process: Process
    encoder: EncoderConfig
    network: NetworkConfig
    sampling: Sampling = field(default_factory=Sampling)
    horizon: int = 16
    execute: int = 8
    first: int | None = None
    action_scaling: Literal["min_max", "quantiles", "mean_std"] = "min_max"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chunk(self.horizon, self.present, self.execute)

    @property
    def present(self) -> int:
        """Index of the present control step in a chunk."""
        return self.encoder.history - 1 if self.first is None else self.first

    def lesson(self) -> Lesson:
        """See :class:`robot.learning.lesson.Training`."""
        return _Imitation(self)


class _Imitation(Lesson):
    """Windows, and the networks that imitate them."""

    def __init__(self, job: BehaviourCloning) -> None:
        cut = Cut(
            sensors=job.encoder.needs,
            horizon=job.horizon,
            history=job.encoder.history,
            first=job.present,
            scaling=job.action_scaling,
        )
        self.material = Material.of(job.demonstrations.load(), cut, job)
        check_clip(self.material, job.sampling.clip, f"action_scaling={job.action_scaling}", "sampling.clip")
        self.facts, self.examples = self.material.facts, len(self.material.train)
        self._job, self._windows, self._augment = job, self.material.train, 0
        self._recipe = Recipe(
            process=job.process,
            encoder=job.encoder,
            network=job.network,
            sensors=tuple((name, stats.shape) for name, stats in self.material.sensors.items()),
            action=self.material.action,
            horizon=job.horizon,
            first=job.present,
            execute=job.execute,
            sampling=job.sampling,
            name=job.called,
        )

    def begin(self, device: torch.device) -> Imitator:
        """See :class:`Lesson`."""
        encoder, network = self._recipe.build(self.material.sensors)
        self._windows, self._augment = self.material.train.to(device), encoder.draws
        return Imitator(self._job.process, encoder, network).to(device)

    def loss(self, module: nn.Module, rows: Tensor, part: slice, step: int) -> Tensor:
        """See :class:`Lesson`."""
        job, device = self._job, self._windows.actions.device
        shape = (job.batch_size, job.horizon, self._recipe.action.dof)
        draws = Draws.fresh(job.process, shape, (job.seed, 2, step), augment=self._augment).part(part, device)
        data = self.material.stats.normalise(self._windows.chunks(rows))
        seen = dict(self._windows.observation(rows).values)
        return cast("Tensor", module(data, seen, draws.noise, draws.time, draws.augmentation).mean())

    def validate(self, module: nn.Module) -> dict[str, float]:
        """See :class:`Lesson`."""
        if self.material.validation is None:
            return {}
        windows = self.material.validation.to(self._windows.actions.device)
        return validate(self._recipe, cast("Imitator", module), windows, self.material.stats, self._job.seed)

    def save(self, path: Path, module: nn.Module, training: Mapping[str, Any]) -> None:
        """See :class:`Lesson`."""
        imitator = cast("Imitator", module)
        save_policy(path, self._recipe, imitator.encoder, imitator.network, self.material.stats, training)
