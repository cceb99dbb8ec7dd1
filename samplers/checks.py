"""Refusals that samplers share; each is raised where a sampler is built, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flowrl.errors import close_match

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from flowrl.flow import Condition, Dynamics

__all__ = ["STATE_DTYPES", "check_at_least", "check_inputs", "check_name", "check_stochastic", "stochastic_steps"]

STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes in which states may be stored for training."""


def check_at_least(name: str, value: int | None, least: int, why: str) -> None:
    """Refuse a count below ``least``; None passes.

    Raises:
        ValueError: With the reason ``why``.
    """
    if value is not None and not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}; {why}")


def check_name(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a name that is not allowed.

    Raises:
        ValueError: With the close match.
    """
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}{close_match(value, allowed)}")


def stochastic_steps(dynamics: Dynamics, times: Tensor) -> tuple[int, ...]:
    """The steps of a grid in which the dynamics inject noise: all of them for most, all but the last for CPS, none for the ODE."""
    zeros = torch.zeros(len(times) - 1, 1, dtype=times.dtype)
    std = dynamics.transition(zeros, zeros, times[:-1], times[1:]).std.expand_as(zeros)
    return tuple(int(index) for index in (std[:, 0] > 0).nonzero()[:, 0])


def check_stochastic(indices: Sequence[int], dynamics: Dynamics, times: Tensor) -> None:
    """Refuse indices of stochastic steps that the grid or the dynamics do not have.

    Args:
        indices: Of the steps that are to be stochastic.
        dynamics: What draws them.
        times: ``(steps + 1,)``.

    Raises:
        ValueError: If there are none, some repeat, lie outside the grid, or are noise-free.
    """
    steps = len(times) - 1
    if not indices:
        raise ValueError("at least one step must be stochastic, got none; for noise-free sampling use samplers.ODESampler")
    if len(set(indices)) < len(indices):
        raise ValueError(f"the indices of stochastic steps must differ, got {tuple(indices)}")
    if outside := [index for index in indices if not 0 <= index < steps]:
        raise ValueError(f"the indices of stochastic steps must lie in 0 … {steps - 1} (the grid has {steps} steps), got {outside}")
    if silent := sorted(set(indices) - set(stochastic_steps(dynamics, times))):
        raise ValueError(f"steps {silent} are noise-free under {dynamics}, so they have no log-probability; leave them out")


def check_inputs(noise: Tensor, condition: Condition, noise_rows: int) -> None:
    """Refuse initial noise that does not fit the prompts.

    Raises:
        ValueError: If ``noise`` has not ``noise_rows`` rows per row of the condition.
    """
    if len(noise) != len(condition) * noise_rows:
        raise ValueError(
            f"this sampler wants {noise_rows} row(s) of initial noise per prompt, {len(condition) * noise_rows} for "
            f"{len(condition)} prompt(s), got {len(noise)}"
        )
