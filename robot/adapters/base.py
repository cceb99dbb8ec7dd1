"""What the adapters share: a host's policy object becomes a policy that can be composed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.flow import RectifiedFlow
from flowrl.shapes import RandomSource, randn
from robot.composition import Member, Sampling
from robot.normalise import NormStats
from robot.types import ActionChunk, ActionSpec, Observation

if TYPE_CHECKING:
    from flowrl.flow import AffinePath

__all__ = ["AdaptedPolicy", "PresentFlow", "joined"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptedPolicy(ABC):
    """A policy of another library, by its own network, its own encoder and its own normaliser.

    It satisfies :class:`robot.policies.ComposablePolicy`: alone, :meth:`act` runs the host's own sampler (same schedule, same
    steps, same clipping, so the same numbers from the same noise); in a composition, :meth:`member` gives its network.

    Attributes:
        host: The library's policy object, loaded and in evaluation mode; duck-typed, so this package imports no host library.
        action: What its actions mean, after the host's normaliser.
        inputs: Which sensors feed which of the host's inputs: ``{"observation.state": ("agent_pos",)}``; several are joined along
            their last axis, in this order. None: the host's inputs are the sensors, by the same names, where the host names them.
        name: In tables and messages; empty becomes the host's class.
        accept_terminal_snr: Compose although the schedule does not end at pure noise; see :class:`robot.composition.Member`.

    Raises:
        ValueError: If the host cannot be composed, with the reason.
    """

    host: Any
    action: ActionSpec
    inputs: Mapping[str, tuple[str, ...]] | None = None
    name: str = ""
    accept_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.default_name)

    @property
    @abstractmethod
    def kind(self) -> str:
        """What its network predicts, one of :data:`flowrl.flow.PREDICTIONS`."""

    @property
    @abstractmethod
    def path(self) -> AffinePath:
        """The path that it was trained on."""

    @property
    @abstractmethod
    def history(self) -> int:
        """Frames of every sensor that it needs."""

    @property
    @abstractmethod
    def horizon(self) -> int:
        """Control steps of a chunk."""

    @property
    @abstractmethod
    def first(self) -> int:
        """Index of the present control step in its chunk."""

    @property
    @abstractmethod
    def execute(self) -> int:
        """Actions of a chunk that the host executes before it predicts again."""

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """The host's own steps, kind of sampler and clipping."""

    @property
    def private_dims(self) -> int:
        """Dimensions of its network's state after the action's own, such as padding."""
        return 0

    @abstractmethod
    def host_inputs(self) -> Mapping[str, tuple[str, ...]]:
        """The host's inputs where ``inputs`` is None.

        Raises:
            ValueError: If the host does not name its inputs.
        """

    @abstractmethod
    def unnormalise(self, actions: Tensor) -> Tensor:
        """The host's own map from its network's units to physical ones, ``(batch, dof)``."""

    @abstractmethod
    def encode(self, observation: Observation) -> Any:
        """The condition of a chunk; the host's encoder runs here, once.

        Args:
            observation: At least this policy's sensors and history.
        """

    @abstractmethod
    def predict(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """One query of the host's network.

        Args:
            x: ``(batch, horizon, dof + private_dims)``, in the coordinates of :attr:`path`, normalised units.
            time: ``(batch,)`` of the path's own time.
            condition: From :meth:`encode`.
        """

    @abstractmethod
    def denoise(self, noise: Tensor, condition: Any, generator: RandomSource = None) -> Tensor:
        """The host's own sampler.

        Args:
            noise: Where it starts, ``(batch, horizon, dof + private_dims)``.
            condition: From :meth:`encode`.
            generator: Source of the noise that a stochastic sampler adds.

        Returns:
            Normalised actions, of ``noise``'s shape.
        """

    @property
    def sensors(self) -> tuple[str, ...]:
        """Names of the sensors that it needs."""
        return tuple(dict.fromkeys(sensor for sensors in self._inputs.values() for sensor in sensors))

    @cached_property
    def stats(self) -> NormStats:
        """Its action normaliser, read off the host's own map.

        Raises:
            ValueError: If that map is not ``offset + scale·x`` in every dimension by itself.
        """
        return affine_stats(self.unnormalise, self.action.dof, self.name)

    @property
    def default_name(self) -> str:
        """The host's class."""
        return type(self.host).__name__

    @property
    def device(self) -> torch.device:
        """Where the host's weights are."""
        parameters = getattr(self.host, "parameters", None)
        weights = next(iter(parameters()), None) if callable(parameters) else None
        return torch.device("cpu") if weights is None else weights.device

    @cached_property
    def _inputs(self) -> Mapping[str, tuple[str, ...]]:
        return self.host_inputs() if self.inputs is None else self.inputs

    def read(self, observation: Observation) -> dict[str, Tensor]:
        """The host's inputs from the sensors, on the host's device: ``(batch, history, ...)`` each."""
        return joined(observation.only(self.sensors, self.history).to(self.device), self._inputs)

    def member(self, weight: float = 1.0) -> Member:
        """This policy as a composition sees it.

        Args:
            weight: Its share.
        """
        return Member(
            predict=self._ask,
            kind=self.kind,
            path=self.path,
            weight=weight,
            offset=self.stats.offset,
            scale=self.stats.scale,
            encode=self.encode,
            name=self.name,
            action=self.action,
            horizon=self.horizon,
            private_dims=self.private_dims,
            accept_terminal_snr=self.accept_terminal_snr,
        )

    def _ask(self, x: Tensor, own_time: Tensor, condition: Any) -> Tensor:
        """A query from whatever device the composition is on."""
        return self.predict(x.to(self.device), own_time.to(self.device), condition).to(x.device)

    def act(self, observation: Observation, generator: RandomSource = None) -> ActionChunk:
        """The next chunk for every row, from the host's own sampler.

        Args:
            observation: At least this policy's sensors and history.
            generator: Source of the noise; a sequence gives each row its own.
        """
        with torch.no_grad():
            shape = (len(observation), self.horizon, self.action.dof + self.private_dims)
            noise, condition = randn(shape, generator, device=self.device), self.encode(observation)
            start = time.perf_counter()
            actions = self.denoise(noise, condition, generator)[..., : self.action.dof].float().cpu()
        spent = {self.name: time.perf_counter() - start}
        return ActionChunk(values=self.stats.unnormalise(actions), spec=self.action, first=self.first, latency_s=spent)


@dataclass(frozen=True, kw_only=True, eq=False)
class PresentFlow(AdaptedPolicy, ABC):
    """A rectified flow that sees one frame and whose chunk begins at the present step, as VLAs do."""

    @property
    def kind(self) -> str:
        """Velocity, noise − data."""
        return "velocity"

    @property
    def path(self) -> RectifiedFlow:
        """A rectified flow whose time is flowrl's."""
        return RectifiedFlow()

    @property
    def history(self) -> int:
        """One frame."""
        return 1

    @property
    def first(self) -> int:
        """Chunks begin at the present step."""
        return 0


def joined(observation: Observation, inputs: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """A host's inputs from sensors; several sensors are joined along their last axis.

    Args:
        observation: Holds all the sensors.
        inputs: Sensors of each of the host's inputs.
    """
    values = observation.values
    return {key: values[names[0]] if len(names) == 1 else torch.cat([values[name] for name in names], -1) for key, names in inputs.items()}


def affine_stats(unnormalise: Any, dof: int, label: str) -> NormStats:
    """Offset and scale of a host's normaliser by asking it, which holds whatever its conventions.

    Args:
        unnormalise: ``(batch, dof) -> (batch, dof)``, normalised to physical units.
        dof: Dimensions of an action.
        label: Of the policy, for messages.

    Raises:
        ValueError: If the map mixes dimensions or is not affine.
    """
    one, mixed = torch.ones(1, dof), torch.linspace(-0.9, 0.7, dof).reshape(1, dof)
    probes = torch.cat([torch.zeros(1, dof), one, -one, mixed])
    raw = torch.as_tensor(unnormalise(probes.clone())).detach().float().cpu()
    if raw.shape != probes.shape:
        raise ValueError(f"{label} gives actions of {raw.shape[-1]} dimensions, its ActionSpec names {dof}; name all of them, in its order")
    offset, scale = raw[0], (raw[1] - raw[2]) / 2
    expected = offset + scale * mixed
    if not torch.allclose(raw[3:], expected, rtol=1e-4, atol=float(1e-5 * (1 + offset.abs().max() + scale.abs().max()))):
        raise ValueError(
            f"{label} turns normalised actions into physical ones by a map that is not offset + scale·x in each dimension (relative "
            "actions, angles, or a gripper transform): compose in the space before that map, and apply it to the composed actions"
        )
    return NormStats(offset, scale)
