"""Seconds spent by each member, without making a GPU wait."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import torch

from robot.composition.rows import device_of

__all__ = ["Clock", "Moment"]

Moment: TypeAlias = float | torch.cuda.Event
"""A reading: seconds on the CPU, an event in the stream on a GPU."""


class Clock:
    """Adds up pairs of readings; those of a GPU are read once, at the end."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._spans: list[tuple[int, Moment, Moment, float]] = []

    def now(self, like: Any) -> Moment:
        """A reading where these tensors live."""
        device = device_of(like)
        if device is None or device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    def add(self, member: int, start: Moment, end: Moment, share: float = 1.0) -> None:
        """Count a span for a member, or its share of one."""
        self._spans.append((member, start, end, share))

    def seconds(self, members: int) -> list[float]:
        """The sum for each member; waits for the GPU."""
        total = [0.0] * members
        for member, start, end, share in self._spans:
            if isinstance(start, float) and isinstance(end, float):
                total[member] += (end - start) * share
            elif not isinstance(start, float) and not isinstance(end, float):
                end.synchronize()
                total[member] += start.elapsed_time(end) / 1000 * share
        return total
