"""One policy of a composition: a network with its path, normaliser and place in the composed chunk."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from flowrl.errors import close_match
from flowrl.flow import PREDICTIONS, AffinePath, VariancePreserving
from robot.normalise import NormStats
from robot.types import ActionSpec

__all__ = ["Member", "Weight"]

Weight: TypeAlias = float | Tensor | Callable[[float], float | Tensor]
"""A share of the composition: a number, a tensor ``(dof,)`` or ``(horizon, dof)``, or a function of the noise level that gives one."""

TERMINAL_ALPHA_BAR = 0.01  # a schedule that ends above this never shows its network noise as pure as sampling starts from


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A policy as a composition sees it. ``raw action = offset + scale·x``, where ``x`` is what its network works on.

    Attributes:
        predict: ``(x, time, condition) -> prediction``; ``x`` is ``(batch, horizon, dims)`` in the member's own path coordinates and
            normalised units, ``time`` is ``(batch,)``: integer timesteps on a variance-preserving path, noise levels in [0, 1]
            (1 is noise) on :class:`flowrl.flow.RectifiedFlow`.
        kind: What it predicts: ``epsilon``, ``sample``, ``v``, ``velocity`` (noise − data) or ``score``.
        path: The path that it was trained on.
        weight: Its share; the weights of a composition are >= 0 and sum to one.
        offset: Of its normaliser, physical units, a number or ``(dims,)``.
        scale: Of its normaliser, physical units, > 0, a number or ``(dims,)``.
        encode: Observation to condition, called once per chunk; None hands the observation on as it is.
        name: For messages and tables.
        action: What its actions mean; members that say so are checked against each other.
        dims: Which dimensions of the composed action its own are, in its order; None for all.
        start: First step of the composed chunk that it covers.
        horizon: Steps that it covers; None for all from ``start``.
        private_dims: Dimensions after its own that belong to nobody else, such as the padding of a VLA.
        every: Its network is asked at every so many steps and its velocity reused in between: an approximation, coarse
            where steps are few. (Reusing its predicted data, as is sometimes proposed, errs several times more: near the data a stale
            target pulls hard.)
        clip: Bound on its own predicted data, normalised units; None for none. To clip the composition instead, see ``Composer``.
        base_noise: What its sampler starts from; only ``gaussian`` has a score.
        accept_terminal_snr: Sample although the schedule does not end at pure noise, as some training codes do; warns instead of refusing.
        network: The module behind ``predict``, for ``Composer(vmap=True)`` alone.
        predictor: ``predictor(network)`` is ``predict``; for ``Composer(vmap=True)`` alone.

    Raises:
        ValueError: For each of these out of range, with the remedy.
    """

    predict: Callable[[Tensor, Tensor, Any], Tensor]
    kind: str
    path: AffinePath
    weight: Weight = 1.0
    offset: float | Tensor = 0.0
    scale: float | Tensor = 1.0
    encode: Callable[[Any], Any] | None = None
    name: str = ""
    action: ActionSpec | None = None
    dims: tuple[int, ...] | None = None
    start: int = 0
    horizon: int | None = None
    private_dims: int = 0
    every: int = 1
    clip: float | None = None
    base_noise: Literal["gaussian", "uniform", "fixed"] = "gaussian"
    accept_terminal_snr: bool = False
    network: nn.Module | None = None
    predictor: Callable[[Any], Callable[[Tensor, Tensor, Any], Tensor]] | None = None

    def __post_init__(self) -> None:
        if self.kind not in PREDICTIONS:
            raise ValueError(f"unknown prediction kind {self.kind!r}{close_match(self.kind, PREDICTIONS)}")
        if not isinstance(self.path, AffinePath):
            raise ValueError(
                f"path must be Gaussian, such as flowrl.flow.RectifiedFlow() or VariancePreserving(alphas_cumprod), got {self.path!r}; "
                "a policy without one (ACT, VQ-BeT, autoregressive) has no score to compose"
            )
        if self.base_noise != "gaussian":
            raise ValueError(
                f"{self.label} starts from {self.base_noise} noise: it has no score, so it cannot be composed; "
                "a policy that predicts clean actions can join with kind='sample' and gaussian noise if it was trained on that"
            )
        self._check_place()
        _check_terminal(self)
        stats = NormStats(torch.as_tensor(self.offset), torch.as_tensor(self.scale))
        object.__setattr__(self, "offset", stats.offset)
        object.__setattr__(self, "scale", stats.scale)

    def _check_place(self) -> None:
        if self.start < 0 or self.every < 1 or self.private_dims < 0 or (self.horizon is not None and self.horizon < 1):
            given = f"start={self.start}, every={self.every}, private_dims={self.private_dims}, horizon={self.horizon}"
            raise ValueError(f"{self.label} needs start >= 0, every >= 1, private_dims >= 0 and horizon >= 1 (or None), got {given}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip of {self.label} must be > 0 normalised units, got {self.clip}; None does not clip")
        if self.dims is not None and (not self.dims or len(set(self.dims)) != len(self.dims) or min(self.dims) < 0):
            raise ValueError(f"dims of {self.label} must be different dimensions of the composed action, counted from 0, got {self.dims}")

    @property
    def label(self) -> str:
        """Its name, or what it is."""
        return self.name or f"{self.kind} policy"

    @property
    def largest_time(self) -> float:
        """The noise level at which its network's schedule begins, 1 for a flow."""
        return float(self.path.times()[-1]) if isinstance(self.path, VariancePreserving) else 1.0


def _check_terminal(member: Member) -> None:
    if not isinstance(member.path, VariancePreserving):
        return
    alpha_bar = float(member.path.alphas_cumprod[-1])
    if alpha_bar <= TERMINAL_ALPHA_BAR:
        return
    problem = (
        f"the schedule of {member.label} ends at alpha_bar = {alpha_bar:.3f}, so N(0, I), from which sampling starts, is noise that its "
        f"network never saw, and means are pulled to 0 (allowed: at most {TERMINAL_ALPHA_BAR}, squaredcos_cap_v2 ends at 2e-7)"
    )
    if not member.accept_terminal_snr:
        raise ValueError(f"{problem}; pass the alphas_cumprod it was trained with, retrain, or accept it with accept_terminal_snr=True")
    warnings.warn(problem, stacklevel=4)
