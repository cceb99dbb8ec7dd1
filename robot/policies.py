"""Policies that draw action chunks from a flow: one network, or several composed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from robot.composition import Composer, Member, Sampling
from robot.normalise import NormStats
from robot.types import ActionChunk, ActionSpec, Observation, Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrl.flow import AffinePath
    from flowrl.shapes import RandomSource

__all__ = ["ComposablePolicy", "FlowPolicy", "NetworkProcess", "PolicySource", "act_alone"]


class ComposablePolicy(Policy, Protocol):
    """A policy with a Gaussian path: it can act alone or be a member of a composition."""

    @property
    def name(self) -> str:
        """For tables and messages."""
        ...

    @property
    def horizon(self) -> int:
        """Steps of its chunk."""
        ...

    @property
    def first(self) -> int:
        """Index of the present control step in its chunk; entries before it lie in the past."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How it draws chunks when it acts alone."""
        ...

    def member(self, weight: float = 1.0) -> Member:
        """This policy as a member whose condition is an :class:`robot.types.Observation`."""
        ...


class PolicySource(Protocol):
    """A policy as a config describes it."""

    def load(self, device: str = "cpu") -> Policy:
        """The policy, ready to act."""
        ...


class NetworkProcess(Protocol):
    """What a network was trained to predict, and how it is called; :mod:`robot.learning.process` has the kinds."""

    @property
    def path(self) -> AffinePath:
        """The path it was trained on."""
        ...

    @property
    def kind(self) -> str:
        """What its predictor predicts, one of :data:`flowrl.flow.PREDICTIONS`."""
        ...

    def predictor(self, network: nn.Module) -> Callable[[Tensor, Tensor, Any], Tensor]:
        """``(x, own time, features) -> prediction`` in the conventions of ``path`` and ``kind``."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowPolicy:
    """Observation → features → flow → chunk: a diffusion or a flow policy.

    Attributes:
        encoder: Observation to features ``(batch, feature)``; has ``sensors`` and ``history``.
        network: ``(x (batch, horizon, dof), time (batch,) in [0, 1000], features) -> prediction``.
        process: What the network predicts.
        stats: Normaliser of the actions.
        action: What the actions mean.
        horizon: Steps of a chunk.
        execute: Actions executed before the next chunk is drawn.
        first: Index of the present control step in the chunk.
        sampling: How chunks are drawn.
        name: For tables and messages.

    Raises:
        ValueError: If the chunk is shorter than what is to be executed of it.
    """

    encoder: nn.Module
    network: nn.Module
    process: NetworkProcess
    stats: NormStats
    action: ActionSpec
    horizon: int
    execute: int
    first: int = 0
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    name: str = "policy"

    def __post_init__(self) -> None:
        if not (0 <= self.first < self.horizon and 1 <= self.execute <= self.horizon - self.first):
            given = f"horizon={self.horizon}, first={self.first}, execute={self.execute}"
            raise ValueError(f"a policy needs 0 <= first < horizon and 1 <= execute <= horizon − first, got {given}")

    @property
    def sensors(self) -> tuple[str, ...]:
        """Names of the sensors that its encoder reads."""
        return tuple(self.encoder.sensors)  # type: ignore[arg-type]

    @property
    def history(self) -> int:
        """Frames of every sensor that its encoder reads."""
        return int(self.encoder.history)  # type: ignore[arg-type]

    def encode(self, observation: Observation) -> Tensor:
        """Features of its own sensors and frames, ``(batch, feature)``, on the network's device."""
        seen = observation.only(self.sensors, self.history)
        where = next((weight.device for weight in self.network.parameters()), None)
        return self.encoder(seen if where is None else seen.to(where))

    def member(self, weight: float = 1.0) -> Member:
        """See :class:`ComposablePolicy`."""
        return Member(
            predict=self.process.predictor(self.network),
            kind=self.process.kind,
            path=self.process.path,
            weight=weight,
            offset=self.stats.offset,
            scale=self.stats.scale,
            encode=self.encode,
            name=self.name,
            action=self.action,
            horizon=self.horizon,
            network=self.network,
            predictor=self.process.predictor,
        )

    def act(self, observation: Observation, generator: RandomSource = None) -> ActionChunk:
        """See :class:`robot.types.Policy`."""
        return act_alone(self, observation, generator)


def act_alone(policy: ComposablePolicy, observation: Observation, generator: RandomSource = None) -> ActionChunk:
    """Draw a chunk from one policy: a composition of one.

    Args:
        policy: Any composable policy.
        observation: At least its sensors and history.
        generator: Source of the noise.
    """
    settings = policy.sampling
    drawn = Composer([policy.member()], clip=settings.clip).compose(
        (len(observation), policy.horizon, policy.action.dof),
        steps=settings.steps,
        sampler=settings.sampler,
        generator=generator,
        condition=observation,
    )
    return ActionChunk(values=drawn.actions, spec=policy.action, first=policy.first, latency_s=drawn.latency_s)
