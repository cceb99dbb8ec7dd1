"""A process that holds environments: commands come in over a pipe, answers go out one by one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from flowrl.errors import ConfigError
from robot.evaluation.slot import Answer, Command, Crash, Lost, Slot

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess

    from robot.envs.base import EnvSource

__all__ = ["Worker", "serve"]

_MADE = "made"


def serve(connection: Connection, source: EnvSource, variables: Mapping[str, str]) -> None:
    """Answer commands until the pipe closes; the body of the process.

    Args:
        connection: Brings lists of ``(row, command)``; takes ``(row, answer)`` each, and ``(row, "made")`` when an environment was made.
        source: Of the environments.
        variables: The parent's present environment variables; a server of processes keeps those of its own start.
    """
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    slots: dict[int, Slot] = {}
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            for row, command in connection.recv():
                slot = slots.setdefault(row, Slot(source))
                connection.send((row, slot.answer(command, partial(connection.send, (row, _MADE)))))


class Worker:
    """The parent's side of one such process: starts it, notices when it dies or hangs, starts it again."""

    def __init__(self, source: EnvSource, *, timeout_s: float, start_timeout_s: float) -> None:
        """Nothing is started yet.

        Args:
            source: Of the environments.
            timeout_s: How long an answer may take.
            start_timeout_s: How long the first answer of an environment may take, with the start of the process.
        """
        self._source, self._timeout_s, self._start_timeout_s = source, timeout_s, start_timeout_s
        self._process: SpawnProcess | ForkServerProcess | None = None
        self._waiting: list[int] = []  # rows whose answers are due, in the order in which they are worked on
        self._since = 0.0
        self._made: set[int] = set()
        self.connection: Connection | None = None
        self.ever_made = False

    @property
    def busy(self) -> bool:
        """Whether answers are due."""
        return bool(self._waiting)

    @property
    def seconds_left(self) -> float:
        """Until the present answer is overdue."""
        allowed = self._timeout_s if self._waiting and self._waiting[0] in self._made else self._start_timeout_s
        return self._since + allowed - time.monotonic()

    def send(self, commands: Mapping[int, Command]) -> None:
        """Hand over commands; the answers come one by one."""
        self._waiting, self._since = list(commands), time.monotonic()
        if self._process is None:
            self._start()
        if self.connection is not None:
            with contextlib.suppress(BrokenPipeError):  # noticed when its answers are asked for
                self.connection.send(list(commands.items()))

    def receive(self) -> dict[int, Answer]:
        """The next answer, when the connection has one; if the process died, what became of all its rows."""
        try:
            row, answer = self.connection.recv()  # type: ignore[union-attr]
        except (EOFError, OSError):
            return self._gone(self._epitaph())
        self._since = time.monotonic()
        if answer == _MADE:
            self._made.add(row)
            self.ever_made = True
            return {}
        self._waiting.remove(row)
        if isinstance(answer, Crash):
            self._made.discard(row)
        return {row: answer}

    def overdue(self) -> dict[int, Answer]:
        """End the process because its answer did not come in time; what becomes of all its rows."""
        allowed = self._timeout_s if self._waiting[0] in self._made else self._start_timeout_s
        return self._gone(f"no answer within {allowed:g} s; the environment hung and its process was ended")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self.connection is not None:
            self.connection.close()
        if self._process is not None:
            self._process.join(timeout=0.0 if self.busy else 1.0)  # an idle one ends by itself when the pipe closes
            self._process.kill()
            self._process.join()
            self._process.close()
        self._process = self.connection = None
        self._waiting, self._made = [], set()

    def _start(self) -> None:
        context = _context()
        self.connection, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._source, dict(os.environ)), daemon=True)
        try:
            process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"{type(self._source).__name__} cannot be sent to a worker process ({error}); define it at the top of a module, or use "
                "workers=0"
            ) from error
        finally:
            theirs.close()
        self._process = process

    def _gone(self, error: str) -> dict[int, Answer]:
        """The row being worked on pays; its neighbours are lost with it, those that had answered too."""
        culprit, *others = self._waiting
        neighbours = {*others, *self._made} - {culprit}
        unmade = culprit not in self._made
        self.close()
        return {culprit: Crash(error=error, unmade=unmade), **dict.fromkeys(sorted(neighbours), Lost())}

    def _epitaph(self) -> str:
        if self._process is None:
            return "its process is gone"
        self._process.join(timeout=1.0)
        code = self._process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        return f"its process {how}"


def _context() -> SpawnContext | ForkServerContext:
    """How processes start: never by forking this one, which would copy held locks of torch's threads.

    On Linux they are forked from a server that has imported torch and does nothing else: an environment that died is back in no time.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
