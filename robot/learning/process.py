"""What a policy learns to undo: diffusion (epsilon, sample or v prediction) or a straight flow, in either direction of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from flowrl.flow import AffinePath, Condition, RectifiedFlow, VariancePreserving, flow_matching_loss, logit_normal_times
from flowrl.shapes import randn, state_mean
from robot.learning.blocks import TIME_SCALE

if TYPE_CHECKING:
    from flowrl.shapes import RandomSource

__all__ = ["Diffusion", "Flow", "Predictor", "Process", "Schedule"]

Schedule = Literal["squaredcos_cap_v2", "linear", "scaled_linear"]
"""Names as in diffusers' ``DDPMScheduler``."""

Predictor: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x (batch, horizon, dof), own time (batch,), features (batch, feature)) -> prediction`` of the process's kind."""

_BETA_START, _BETA_END, _LARGEST_BETA = 1.0e-4, 0.02, 0.999  # diffusers' defaults
_COSINE_OFFSET = 0.008  # arXiv:2102.09672, Eq. 17
_TERMINAL_ALPHA_BAR = 0.01


class Process(Protocol):
    """A path between actions and noise with what the network predicts on it; trains networks ``(x, time in [0, 1000], features)``."""

    @property
    def path(self) -> AffinePath:
        """Whose own time the predictor takes."""
        ...

    @property
    def kind(self) -> str:
        """What the predictor returns, one of :data:`flowrl.flow.PREDICTIONS`."""
        ...

    def predictor(self, network: Predictor) -> Predictor:
        """A network with the path's own time and flowrl's sign: what a :class:`robot.Member` takes."""
        ...

    def times(self, count: int, generator: RandomSource = None) -> Tensor:
        """Own times to train at, ``(count,)`` on the CPU."""
        ...

    def error(self, network: Predictor, data: Tensor, noise: Tensor, time: Tensor, features: Tensor) -> Tensor:
        """The loss at given noise and times.

        Args:
            network: Sees times in [0, 1000].
            data: Normalised actions ``(batch, horizon, dof)``.
            noise: Standard normal, the same shape.
            time: The path's own time ``(batch,)``.
            features: Of the observations, ``(batch, feature)``.

        Returns:
            ``(batch,)``, mean over the chunk.
        """
        ...

    def loss(self, network: Predictor, data: Tensor, generator: RandomSource, features: Tensor) -> Tensor:
        """:meth:`error` at fresh noise and times, ``(batch,)``."""
        ...


class _Drawing:
    """The loss of a process, from its times and its error."""

    def loss(self: Process, network: Predictor, data: Tensor, generator: RandomSource, features: Tensor) -> Tensor:
        """See :class:`Process`."""
        time = self.times(len(data), generator).to(data.device)
        return self.error(network, data, randn(data.shape, generator, device=data.device), time, features)


@dataclass(frozen=True, kw_only=True)
class Diffusion(_Drawing):
    """A variance-preserving diffusion of integer timesteps, trained by the plain squared error (arXiv:2006.11239, Eq. 14).

    Attributes:
        timesteps: Of the schedule, at least 2; its own time runs 0 … timesteps − 1.
        schedule: How noise grows.
        predict: What the network predicts: the noise, the data, or ``v`` (arXiv:2202.00512).

    Raises:
        ValueError: If there are too few timesteps, or the last one is far from pure noise: such a policy was never trained where
            sampling from N(0, I) starts, and its actions are biased.
    """

    timesteps: int = 100
    schedule: Schedule = "squaredcos_cap_v2"
    predict: Literal["epsilon", "sample", "v"] = "epsilon"

    def __post_init__(self) -> None:
        if self.timesteps < 2:  # noqa: PLR2004
            raise ValueError(f"a diffusion needs at least 2 timesteps, got {self.timesteps}; 100 is usual")
        last = float(self.path.alphas_cumprod[-1])
        if last > _TERMINAL_ALPHA_BAR:
            raise ValueError(
                f"{self.schedule} with {self.timesteps} timesteps ends at alpha_bar = {last:.3f}, which is not pure noise: actions "
                "sampled from N(0, I) would be biased; use squaredcos_cap_v2, or timesteps=1000"
            )

    @cached_property
    def path(self) -> VariancePreserving:
        """See :class:`Process`."""
        return VariancePreserving(torch.cumprod(1 - _BETAS[self.schedule](self.timesteps), 0))

    @property
    def kind(self) -> str:
        """See :class:`Process`."""
        return self.predict

    def predictor(self, network: Predictor) -> Predictor:
        """See :class:`Process`."""
        rate = TIME_SCALE / (self.timesteps - 1)
        return lambda x, time, features: network(x, rate * time.to(x.dtype), features)

    def times(self, count: int, generator: RandomSource = None) -> Tensor:
        """Uniform over the timesteps."""
        return (self.timesteps * _uniform(count, generator)).long()

    def error(self, network: Predictor, data: Tensor, noise: Tensor, time: Tensor, features: Tensor) -> Tensor:
        """See :class:`Process`."""
        point = self.path.sample(data, noise, time)
        target = self.path.predict(point.endpoints, time, self.kind)
        return state_mean((self.predictor(network)(point.x_t, time, features).to(target.dtype) - target) ** 2)


@dataclass(frozen=True, kw_only=True)
class Flow(_Drawing):
    """The straight path between actions and noise, trained by conditional flow matching (arXiv:2210.02747).

    Attributes:
        reversed_time: Whether the network's own time runs from noise (0) to data (1) and its velocity is ``data − noise``, as in ReinFlow
            or GR00T; the predictor turns both round.
        logit_std: Spread of logit-normal training times (SD3: 1); None trains at uniform ones.

    Raises:
        ValueError: If the spread is not positive.
    """

    reversed_time: bool = False
    logit_std: float | None = None

    def __post_init__(self) -> None:
        if self.logit_std is not None and not self.logit_std > 0:
            raise ValueError(f"logit_std must be > 0, got {self.logit_std}; null draws uniform times")

    @property
    def path(self) -> RectifiedFlow:
        """See :class:`Process`."""
        return RectifiedFlow()

    @property
    def kind(self) -> str:
        """See :class:`Process`."""
        return "velocity"

    def predictor(self, network: Predictor) -> Predictor:
        """See :class:`Process`."""
        if self.reversed_time:
            return lambda x, time, features: -network(x, TIME_SCALE * (1 - time.to(x.dtype)), features)
        return lambda x, time, features: network(x, TIME_SCALE * time.to(x.dtype), features)

    def times(self, count: int, generator: RandomSource = None) -> Tensor:
        """Uniform or logit-normal in (0, 1)."""
        return _uniform(count, generator) if self.logit_std is None else logit_normal_times(count, generator, std=self.logit_std)

    def error(self, network: Predictor, data: Tensor, noise: Tensor, time: Tensor, features: Tensor) -> Tensor:
        """See :class:`Process`."""
        predict = self.predictor(network)

        def field(x_t: Tensor, t: Tensor | float, condition: Condition) -> Tensor:
            velocity = predict(x_t, torch.as_tensor(t), condition.tensors["features"])
            return velocity.to(x_t.dtype)

        return flow_matching_loss(field, data, noise, time, Condition({"features": features}))


def _uniform(count: int, generator: RandomSource) -> Tensor:
    """``(count,)`` in (0, 1): the distribution function of standard normal noise, which one generator or several can draw."""
    return torch.special.ndtr(randn((count,), generator, device="cpu", dtype=torch.float64)).clamp(1e-7, 1 - 1e-7).float()


def _linear(timesteps: int) -> Tensor:
    return torch.linspace(_BETA_START, _BETA_END, timesteps, dtype=torch.float64)


def _scaled_linear(timesteps: int) -> Tensor:
    return torch.linspace(math.sqrt(_BETA_START), math.sqrt(_BETA_END), timesteps, dtype=torch.float64) ** 2


def _squared_cosine(timesteps: int) -> Tensor:
    """Betas of ``ᾱ(u) = cos²((u + 0.008)/1.008·π/2)``, capped (arXiv:2102.09672, Eq. 17)."""
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((u + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=_LARGEST_BETA)


_BETAS: dict[str, Callable[[int], Tensor]] = {"squaredcos_cap_v2": _squared_cosine, "linear": _linear, "scaled_linear": _scaled_linear}
