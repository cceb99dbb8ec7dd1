"""Stopping a run from outside without losing it."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["StopRequest", "Stopped"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A stop that was asked for, raised between the phases of an update: nothing is half done."""


class StopRequest:
    """A context in which Ctrl-C and SIGTERM set a flag; a second Ctrl-C interrupts at once.

    Outside the main thread no handler can be installed and the flag stays down.
    """

    def __init__(self) -> None:
        """The flag starts down."""
        self.requested = False
        self._interrupts = 0
        self._previous: dict[int, signal.Handlers | signal._HANDLER] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Put back the handlers that were there."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.requested = True
        self._interrupts += number == signal.SIGINT  # launchers add a SIGTERM of their own to the user's Ctrl-C
        if self._interrupts > 1:
            raise KeyboardInterrupt
