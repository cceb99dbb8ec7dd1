"""Solvers of the deterministic steps ``dx = velocity·dt``, each with its own order of accuracy.

A solver takes all its rows from their own ``t`` to their own ``s``, given the velocity there; one that needs more
evaluations asks for them. What it remembers between steps is a tuple of tensors with leading rows, so that rows can branch
and drop out: ``()`` before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from flowrl.flow import ODE
from flowrl.shapes import expand_time

__all__ = ["DPMSolverPP2M", "Euler", "Evaluate", "Heun", "Memory", "Solver", "extrapolated_data", "select_rows"]

Memory: TypeAlias = tuple[Tensor, ...]
"""What a multistep solver remembers, each ``(row, ...)``; ``()`` before the first step."""

Evaluate: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x, t, rows) -> velocity`` of some of the rows of a step, which ``rows`` names in the order of ``x``."""


def select_rows(memory: Memory, rows: Tensor | slice) -> Memory:
    """The memory of some rows, repeated where ``rows`` repeats them."""
    return tuple(tensor[rows] for tensor in memory)


@runtime_checkable
class Solver(Protocol):
    """One deterministic step of a batch of rows."""

    def step(self, velocity: Tensor, x_t: Tensor, t: Tensor, s: Tensor, memory: Memory, evaluate: Evaluate) -> tuple[Tensor, Memory]:
        """Take every row from ``t`` to ``s``.

        Args:
            velocity: At ``(x_t, t)``, ``(row, *state)``.
            x_t: ``(row, *state)``.
            t: ``(row,)``.
            s: ``(row,)``, below ``t``.
            memory: What the previous step returned for these rows; ``()`` at the first.
            evaluate: For solvers that need the field elsewhere.

        Returns:
            The states at ``s`` and the memory for the next step.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Euler:
    """``x_s = x_t + (s − t)·velocity``: first order, one evaluation a step."""

    def step(self, velocity: Tensor, x_t: Tensor, t: Tensor, s: Tensor, memory: Memory, evaluate: Evaluate) -> tuple[Tensor, Memory]:
        """See :class:`Solver`."""
        del evaluate
        return ODE().transition(velocity, x_t, t, s).mean, memory


@dataclass(frozen=True, kw_only=True)
class Heun:
    """The explicit trapezoidal rule: second order, two evaluations a step; a step to ``s = 0`` is Euler (EDM, arXiv:2206.00364, Alg. 1)."""

    def step(self, velocity: Tensor, x_t: Tensor, t: Tensor, s: Tensor, memory: Memory, evaluate: Evaluate) -> tuple[Tensor, Memory]:
        """See :class:`Solver`."""
        euler = ODE().transition(velocity, x_t, t, s).mean
        rows = (s > 0).nonzero().squeeze(1)
        if not len(rows):
            return euler, memory
        ahead = evaluate(euler[rows], s[rows], rows)
        average = velocity.index_copy(0, rows, (velocity[rows] + ahead) / 2)
        return ODE().transition(average, x_t, t, s).mean, memory


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M) on the rectified flow: second order, one evaluation a step (arXiv:2211.01095, Alg. 2).

    With ``data = x_t − t·velocity`` and ``λ = log((1 − t)/t)``, the step is ``x_s = (s/t)·x_t + (1 − s/t)·D``, where ``D``
    extrapolates the two latest predictions of the data: ``D = data + (h/(2·h_previous))·(data − data_previous)`` with
    ``h = λ_s − λ_t``. With ``D = data`` it is the Euler step; so are the first step, the one after a step from ``t = 1``
    (where λ is infinite) and a step to ``s = 0``. On grids that start at noise the error is ``O(h²·log(1/h))``, since the
    first steps in λ do not shrink with h.
    """

    def step(self, velocity: Tensor, x_t: Tensor, t: Tensor, s: Tensor, memory: Memory, evaluate: Evaluate) -> tuple[Tensor, Memory]:
        """See :class:`Solver`."""
        del evaluate
        target, memory = extrapolated_data(velocity, x_t, t, s, memory)
        kept = expand_time(s, x_t) / expand_time(t, x_t)
        return kept * x_t + (1 - kept) * target, memory


def extrapolated_data(velocity: Tensor, x_t: Tensor, t: Tensor, s: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """The data that a second-order step from ``t`` to ``s`` aims at; the ``D`` of :class:`DPMSolverPP2M`, also right under noise.

    Args:
        velocity: At ``(x_t, t)``, ``(row, *state)``.
        x_t: ``(row, *state)``.
        t: ``(row,)``.
        s: ``(row,)``, below ``t``.
        memory: What the previous step returned; ``()`` at the first.
    """
    data = x_t - expand_time(t, x_t) * velocity
    if not memory:
        return data, (data, t)
    previous, previous_t = memory
    return data + expand_time(_extrapolation(previous_t, t, s), x_t) * (data - previous), (data, t)


def _extrapolation(previous_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """``h/(2·h_previous)``, and 0 where either half-log-SNR is infinite."""
    finite = (previous_t < 1) & (s > 0)
    early, late = torch.where(finite, previous_t, t), torch.where(finite, s, t)
    h, h_previous = torch.logit(t) - torch.logit(late), torch.logit(early) - torch.logit(t)
    return torch.where(finite, h / (2 * torch.where(finite, h_previous, torch.ones_like(t))), torch.zeros_like(t))
