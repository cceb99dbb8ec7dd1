"""Rows of whatever a member's encoder returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.flow import Condition
from robot.types import Observation

__all__ = ["device_of", "take_rows"]


def take_rows(condition: Any, rows: Tensor) -> Any:
    """The given rows of a condition: of tensors, :class:`flowrl.flow.Condition`, observations, and mappings and sequences of these.

    Args:
        condition: What an encoder returned; None stays None.
        rows: ``(row,)`` long.

    Raises:
        ValueError: If it holds something that has no rows.
    """
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        return condition[rows.to(condition.device)]
    if isinstance(condition, Condition | Observation):
        return condition[rows]
    if isinstance(condition, Mapping):
        return {name: take_rows(value, rows) for name, value in condition.items()}
    if isinstance(condition, Sequence) and not isinstance(condition, str):
        return type(condition)([take_rows(value, rows) for value in condition])  # type: ignore[call-arg]
    raise ValueError(f"cannot take rows of a {type(condition).__name__}; an encoder should return tensors, or mappings of them")


def device_of(condition: Any) -> torch.device | None:
    """Where a condition's tensors live; None where it holds none."""
    if isinstance(condition, Tensor):
        return condition.device
    if isinstance(condition, Observation):
        return device_of(condition.values)
    if isinstance(condition, Condition):
        return device_of(condition.tensors)
    values = condition.values() if isinstance(condition, Mapping) else condition if isinstance(condition, list | tuple) else ()
    return next((device for value in values if (device := device_of(value)) is not None), None)
