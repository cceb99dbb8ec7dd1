"""Policies of the toy whose law is exactly Gaussian, as a diffusion model and as a flow."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from flowrl.flow import AffinePath, RectifiedFlow
from flowrl.testing import GaussianField
from robot.composition import Composer, Member, Sampling
from robot.envs.toy import Toy
from robot.normalise import NormStats
from robot.types import ActionChunk, ActionSpec, Observation

if TYPE_CHECKING:
    from flowrl.shapes import RandomSource

__all__ = ["BiasedPolicy", "ToyPolicy"]

Family = Literal["diffusion", "flow"]
_KINDS: dict[str, str] = {"diffusion": "epsilon", "flow": "velocity"}


@dataclass(frozen=True, kw_only=True)
class ToyPolicy:
    """Where a toy policy comes from: its actions are ``N(target + bias, std²)``, exactly.

    Attributes:
        bias: By how much it misses on average.
        std: Of its actions, > 0.
        family: ``diffusion`` (predicts epsilon, 100 timesteps of ``squaredcos_cap_v2``) or ``flow`` (predicts velocity).
        offset: Of its normaliser; it changes how its network sees an action, and nothing that the policy does.
        scale: Of its normaliser, > 0.
        horizon: Actions in a chunk, each drawn on its own.
        sampling: How chunks are drawn; the more steps, the closer to the law.
        name: For tables.

    Raises:
        ValueError: If a number is out of range or the family is unknown.
    """

    bias: float
    std: float = 0.1
    family: Family = "flow"
    offset: float = 0.0
    scale: float = 1.0
    horizon: int = 1
    sampling: Sampling = field(default_factory=lambda: Sampling(steps=50, clip=None))
    name: str = ""

    def __post_init__(self) -> None:
        if not (self.std > 0 and self.scale > 0 and self.horizon >= 1):
            raise ValueError(f"std and scale must be > 0 and horizon >= 1, got {self.std}, {self.scale} and {self.horizon}")
        if self.family not in _KINDS:
            raise ValueError(f"family must be one of {', '.join(_KINDS)}, got {self.family!r}")

    def load(self, device: str = "cpu") -> BiasedPolicy:
        """The policy; it has no weights to put anywhere."""
        del device
        return BiasedPolicy(self)


class BiasedPolicy:
    """A composable policy whose network is the closed form.

    Attributes:
        source: Where it came from.
        action: Of the toy.
        sensors: Only the target.
        history: One frame.
        execute: Its whole chunk.
        horizon: Actions in a chunk.
        first: A chunk begins now.
        stats: Its normaliser.
        sampling: How chunks are drawn.
        name: For tables.
    """

    sensors: tuple[str, ...] = ("target",)
    history = 1
    first = 0

    def __init__(self, source: ToyPolicy) -> None:
        self.source = source
        self.action: ActionSpec = Toy().action
        self.horizon = self.execute = source.horizon
        self.stats = NormStats(torch.tensor(source.offset), torch.tensor(source.scale))
        self.sampling = source.sampling
        self.name = source.name or f"{source.family} {source.bias:+g}"

    @cached_property
    def path(self) -> AffinePath:
        """The path of its family."""
        from robot.learning.process import Diffusion

        return RectifiedFlow() if self.source.family == "flow" else Diffusion(timesteps=100).path

    def member(self, weight: float = 1.0) -> Member:
        """As part of a composition."""
        return Member(
            predict=self._predict,
            kind=_KINDS[self.source.family],
            path=self.path,
            weight=weight,
            offset=self.stats.offset,
            scale=self.stats.scale,
            encode=_target,
            name=self.name,
            action=self.action,
            horizon=self.horizon,
        )

    def act(self, observation: Observation, generator: RandomSource = None) -> ActionChunk:
        """A chunk for every row.

        Args:
            observation: With the sensor ``target``.
            generator: Source of the noise.
        """
        composer = Composer((self.member(),), clip=self.sampling.clip)
        shape = (len(observation), self.horizon, self.action.dof)
        sampling = self.sampling
        values = composer.sample(shape, steps=sampling.steps, sampler=sampling.sampler, generator=generator, condition=observation)
        return ActionChunk(values=values, spec=self.action)

    def _predict(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """What the ideal network says: epsilon or velocity, in its own coordinates and units."""
        mean = self.stats.normalise(condition[:, None, :] + self.source.bias)
        t, x_t = self.path.flow_time(time, x), self.path.to_flow(x, time)
        velocity = GaussianField(mean=mean, std=self.source.std / self.source.scale)(x_t, t)
        endpoints = RectifiedFlow().endpoints(velocity, x_t, t)
        return self.path.predict(endpoints, time, _KINDS[self.source.family])


def _target(observation: Observation) -> Tensor:
    return observation.values["target"][:, -1]
