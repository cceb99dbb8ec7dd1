"""Paths between data and noise, and the exact change of coordinates between them.

A path is ``x = a·data + b·noise``. What a network predicts (velocity, epsilon, sample, v, score) fixes data and
noise together with ``x``, so every conversion goes through :class:`Endpoints`. Any path becomes the rectified flow
by ``t = b/(a + b)`` and ``x_t = x/(a + b)``; the velocity ``noise − data`` is the same in both coordinates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.errors import close_match
from flowrl.shapes import Time, expand_time, float_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PREDICTIONS", "AffinePath", "Endpoints", "PathSample", "RectifiedFlow", "VariancePreserving"]


@dataclass(frozen=True)
class Endpoints:
    """The two ends of a path through a state, ``(batch, ...)`` each."""

    data: Tensor
    noise: Tensor

    @property
    def velocity(self) -> Tensor:
        """``noise − data``: the rectified-flow velocity, whatever path the endpoints came from."""
        return self.noise - self.data


@dataclass(frozen=True)
class PathSample:
    """A point on a path with the ends that it lies between."""

    x_t: Tensor
    endpoints: Endpoints


def _from_velocity(velocity: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Endpoints:
    return Endpoints((x - b * velocity) / (a + b), (x + a * velocity) / (a + b))


def _from_epsilon(epsilon: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Endpoints:
    return Endpoints((x - b * epsilon) / a, epsilon)


def _from_sample(sample: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Endpoints:
    return Endpoints(sample, (x - a * sample) / b)


def _from_v(v: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Endpoints:
    norm = a**2 + b**2  # 1 on a variance-preserving path
    return Endpoints((a * x - b * v) / norm, (b * x + a * v) / norm)


def _from_score(score: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Endpoints:
    return _from_epsilon(-b * score, x, a, b)


PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Endpoints]] = {
    "velocity": _from_velocity,
    "epsilon": _from_epsilon,
    "sample": _from_sample,
    "v": _from_v,
    "score": _from_score,
}
"""What a network may predict: ``velocity = noise − data``, ``epsilon``, ``sample`` (data), ``v = a·noise − b·data``
(arXiv:2202.00512, App. D), ``score = −noise/b``. Epsilon and score say nothing about the data where a = 0, a sample
prediction nothing about the noise where b = 0: those give infinities there."""


class AffinePath(ABC):
    """``x = a·data + b·noise`` with coefficients that depend on the path's own time (a noise level or a timestep)."""

    @abstractmethod
    def coefficients(self, time: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, b)`` at the path's own time, broadcast over the state ``like``."""

    @abstractmethod
    def own_time(self, t: Time) -> Tensor:
        """The path's own time at rectified-flow noise level ``t``."""

    @abstractmethod
    def flow_coefficients(self, t: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, b)`` at rectified-flow noise level ``t``, exact also between the path's own times."""

    def sample(self, data: Tensor, noise: Tensor, time: Time) -> PathSample:
        """The state between ``data`` and ``noise`` at the path's own time.

        Args:
            data: ``(batch, ...)``.
            noise: The same shape.
            time: ``()`` or a prefix of the state's axes.

        Raises:
            ValueError: If the shapes differ.
        """
        if data.shape != noise.shape:
            raise ValueError(f"data and noise must have the same shape, got {tuple(data.shape)} and {tuple(noise.shape)}")
        a, b = self.coefficients(time, data)
        return PathSample(a * data + b * noise, Endpoints(data, noise))

    def endpoints(self, prediction: Tensor, x: Tensor, time: Time, kind: str = "velocity") -> Endpoints:
        """Data and noise from what a network predicted at state ``x``.

        Args:
            prediction: ``(batch, ...)``.
            x: The state, in this path's coordinates, the same shape.
            time: The path's own time.
            kind: One of :data:`PREDICTIONS`.

        Raises:
            ValueError: If the kind is unknown or the shapes differ.
        """
        if kind not in PREDICTIONS:
            raise ValueError(f"unknown prediction kind {kind!r}{close_match(kind, PREDICTIONS)}")
        if prediction.shape != x.shape:
            raise ValueError(f"prediction and state must have the same shape, got {tuple(prediction.shape)} and {tuple(x.shape)}")
        dtype = float_dtype(prediction, x)
        a, b = self.coefficients(time, x)
        return PREDICTIONS[kind](prediction.to(dtype), x.to(dtype), a, b)

    def predict(self, endpoints: Endpoints, time: Time, kind: str) -> Tensor:
        """What a network of the given kind would predict for these endpoints: the inverse of :meth:`endpoints`.

        Raises:
            ValueError: If the kind is unknown.
        """
        if kind not in PREDICTIONS:
            raise ValueError(f"unknown prediction kind {kind!r}{close_match(kind, PREDICTIONS)}")
        a, b = self.coefficients(time, endpoints.data)
        if kind == "v":
            return a * endpoints.noise - b * endpoints.data
        if kind == "score":
            return -endpoints.noise / b
        return {"velocity": endpoints.velocity, "epsilon": endpoints.noise, "sample": endpoints.data}[kind]

    def flow_time(self, time: Time, like: Tensor) -> Tensor:
        """The rectified-flow noise level ``t = b/(a + b)`` at the path's own time, broadcast over ``like``."""
        a, b = self.coefficients(time, like)
        return b / (a + b)

    def to_flow(self, x: Tensor, time: Time) -> Tensor:
        """A state of this path in rectified-flow coordinates: ``x/(a + b)``."""
        a, b = self.coefficients(time, x)
        return x / (a + b)

    def from_flow(self, x_t: Tensor, time: Time) -> Tensor:
        """A rectified-flow state in this path's coordinates: ``x_t·(a + b)``."""
        a, b = self.coefficients(time, x_t)
        return x_t * (a + b)


@dataclass(frozen=True)
class RectifiedFlow(AffinePath):
    """``x_t = (1 − t)·data + t·noise`` (arXiv:2209.03003); its own time is the noise level."""

    def coefficients(self, time: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(1 − t, t)``."""
        t = expand_time(time, like)
        return 1 - t, t

    def own_time(self, t: Time) -> Tensor:
        """``t`` itself."""
        return torch.as_tensor(t)

    def flow_coefficients(self, t: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(1 − t, t)``."""
        return self.coefficients(t, like)


@dataclass(frozen=True, eq=False)
class VariancePreserving(AffinePath):
    """``x_k = sqrt(ᾱ_k)·data + sqrt(1 − ᾱ_k)·noise`` (DDPM, arXiv:2006.11239, Eq. 4); its own time is an integer timestep.

    Attributes:
        alphas_cumprod: ᾱ of every timestep, ``(timesteps,)``, decreasing, in (0, 1).

    Raises:
        ValueError: If ᾱ is not one-dimensional, strictly decreasing and inside (0, 1).
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        alpha_bar = torch.as_tensor(self.alphas_cumprod).detach().double().cpu()
        if alpha_bar.ndim != 1 or not bool(((alpha_bar > 0) & (alpha_bar < 1)).all() and (alpha_bar.diff() < 0).all()):
            raise ValueError(
                "alphas_cumprod must be one-dimensional, strictly decreasing and inside (0, 1); "
                "pass scheduler.alphas_cumprod (a schedule rescaled to zero terminal SNR ends at 0: drop its last timestep)"
            )
        object.__setattr__(self, "alphas_cumprod", alpha_bar)

    def coefficients(self, time: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(sqrt(ᾱ), sqrt(1 − ᾱ))`` at integer timesteps.

        Raises:
            ValueError: If a timestep is not an integer inside the schedule.
        """
        step = torch.as_tensor(time)
        index = step.round().long().cpu()
        last = len(self.alphas_cumprod) - 1
        if not torch.equal(index.to(step.dtype), step.cpu()) or bool((index < 0).any() or (index > last).any()):
            raise ValueError(f"timesteps must be integers in 0 … {last}, got {step.tolist()}; use own_time(t) to find the nearest one")
        alpha_bar = expand_time(self.alphas_cumprod[index].to(like.device, float_dtype(like)), like)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def times(self) -> Tensor:
        """The rectified-flow noise level of every timestep, float64 ``(timesteps,)``, increasing."""
        a, b = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
        return b / (a + b)

    def own_time(self, t: Time) -> Tensor:
        """The timestep whose noise level is nearest to ``t``, of ``t``'s shape."""
        times, wanted = self.times(), torch.as_tensor(t).double().cpu()
        above = torch.searchsorted(times, wanted.contiguous()).clamp(1, len(times) - 1)
        nearest = torch.where(wanted - times[above - 1] < times[above] - wanted, above - 1, above)
        return nearest.to(torch.as_tensor(t).device)

    def flow_coefficients(self, t: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(1 − t, t) / sqrt(t² + (1 − t)²)``: the variance-preserving pair whose ratio b/a is ``t/(1 − t)``.

        Raises:
            ValueError: If ``t`` lies above the schedule's largest noise level, where the network was never trained.
        """
        largest = float(self.times()[-1])
        if float(torch.as_tensor(t).max()) > largest + 1e-6:
            raise ValueError(
                f"this schedule's largest noise level is {largest:.6f}, got t = {float(torch.as_tensor(t).max()):.6f}; start the grid "
                "there, as samplers.DiffusionGrid does"
            )
        dtype = float_dtype(t, like) if isinstance(t, Tensor) else float_dtype(like)
        # Near pure noise 1 − t is 5e-4: in float32 it would be wrong by 1e-4 of itself, and with it all predicted data.
        time = t.cpu().double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        norm = (time**2 + (1 - time) ** 2).sqrt()
        return expand_time(((1 - time) / norm).to(dtype), like), expand_time((time / norm).to(dtype), like)
