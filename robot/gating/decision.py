"""What a gate decides at one denoising step: a squashed Gaussian over multipliers in (0, 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from flowrl.flow import Transition
from samplers.per_token import LARGEST_MULTIPLIER

__all__ = ["Decision", "inverse_multiplier", "multiplier"]

_NODES = 64  # of the quadrature of the entropy


def multiplier(u: Tensor) -> Tensor:
    """``r = 2·sigmoid(u)`` in (0, 2); 1, the shared schedule, at exactly ``u = 0``.

    Args:
        u: Decisions, any shape.
    """
    return LARGEST_MULTIPLIER * torch.sigmoid(u)


def inverse_multiplier(r: Tensor) -> Tensor:
    """The ``u`` with ``multiplier(u) = r``.

    Args:
        r: Multipliers in (0, 2), any shape.

    Raises:
        ValueError: If one lies outside (0, 2).
    """
    if not bool(((r > 0) & (r < LARGEST_MULTIPLIER)).all()):  # "not" also refuses NaN
        raise ValueError(f"multipliers must lie in (0, 2), 1 being the shared schedule, got {r.tolist()}")
    return torch.logit(r / LARGEST_MULTIPLIER)


@dataclass(frozen=True)
class Decision:
    """``u ~ N(mean, std²)`` independently, and the multiplier ``r = 2·sigmoid(u)``.

    Densities are those of ``r`` on (0, 2): ``log p(r) = log N(u; mean, std) − log 2 − log sigmoid'(u)``, where
    ``log sigmoid'(u) = u − 2·softplus(u)``. A decision is scored by ``u`` as it was stored: ``r`` rounds to 0 or 2 long before ``u`` does.

    Attributes:
        mean: ``(..., column)``, a column per latent, and one for the actions where the gate moves their time too.
        log_std: Log of the standard deviation of ``u``, ``(column,)`` or the shape of ``mean``.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Draw ``u``.

        Args:
            noise: Standard normal, the shape of ``mean``.
        """
        return self._transition().sample(noise=noise.reshape(-1)).reshape(self.mean.shape)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log-density of the multipliers that stored decisions stand for, nats per decision, the shape of ``mean``.

        Args:
            u: As stored, the shape of ``mean``.

        Raises:
            ValueError: If the shapes differ.
        """
        if u.shape != self.mean.shape:
            raise ValueError(f"decisions of shape {tuple(u.shape)} cannot be scored under a mean of shape {tuple(self.mean.shape)}")
        return self._transition().log_prob(u.reshape(-1)).reshape(u.shape) - _log_slope(u)

    def entropy(self) -> Tensor:
        """Entropy of the multipliers, nats per decision, at most ``log 2`` (uniform on (0, 2)); the shape of ``mean``.

        ``H(r) = H(u) + E[log 2 + log sigmoid'(u)]``, the expectation by Gauss–Hermite quadrature. Unlike the entropy of ``u`` it does not
        grow for ever with the standard deviation: multipliers that crowd at 0 and 2 have little.
        """
        nodes, weights = (torch.as_tensor(part, dtype=self.mean.dtype, device=self.mean.device) for part in _hermite())
        u = self.mean[..., None] + (self.log_std.exp()[..., None] * nodes).expand(*self.mean.shape, len(nodes))
        return 0.5 * math.log(2 * math.pi * math.e) + self.log_std + (_log_slope(u) * weights).sum(-1)

    def _transition(self) -> Transition:
        """One state a decision, so that the mean over a state's axes is the decision itself."""
        return Transition(self.mean.reshape(-1), self.log_std.exp().expand_as(self.mean).reshape(-1))


def _log_slope(u: Tensor) -> Tensor:
    """``log dr/du = log 2 + log sigmoid'(u)``, exact in both tails."""
    return math.log(2) + u - 2 * torch.nn.functional.softplus(u)


@lru_cache(maxsize=1)
def _hermite() -> tuple[list[float], list[float]]:
    """Nodes and weights of the expectation under a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)  # type: ignore[no-untyped-call]
    return nodes.tolist(), (weights / weights.sum()).tolist()
