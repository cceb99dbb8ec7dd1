"""Environments side by side, in processes of their own or in this one."""

from __future__ import annotations

import logging
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Self

from flowrl.errors import FlowrlError
from robot.evaluation.slot import Answer, Command, Crash, Lost, Slot, Step
from robot.evaluation.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from robot.envs.base import EnvSource

__all__ = ["EnvPool", "EnvironmentFailedError"]

_logger = logging.getLogger("flowrl.robot.evaluation")


class EnvironmentFailedError(FlowrlError, RuntimeError):
    """No episode can be run: the environment cannot be made, or is not what it has to be."""


class EnvPool:
    """Rows of environments of one kind; a row that raises, dies or hangs is replaced and costs only its own episode.

    With workers, rows are dealt out over processes. Rows that share a process with one that dies or hangs lose their state without fault
    (:class:`Lost`). In this process (``workers=0``) exceptions are caught too, but nothing can be done about a hang or a killed process.
    """

    def __init__(self, source: EnvSource, *, rows: int, workers: int = 0, timeout_s: float = 60.0, start_timeout_s: float = 300.0) -> None:
        """Nothing is started before the first command.

        Args:
            source: Of the environments; with workers it is pickled.
            rows: How many environments there are, at least 1.
            workers: Processes; 0 keeps the environments in this one.
            timeout_s: How long a step or reset may take, > 0.
            start_timeout_s: How long making an environment may take, > 0.

        Raises:
            ValueError: If a number is out of range.
        """
        if rows < 1 or workers < 0:
            raise ValueError(f"a pool needs rows >= 1 and workers >= 0, got {rows} and {workers}; workers=0 uses no further process")
        if not (timeout_s > 0 and start_timeout_s > 0):
            raise ValueError(f"timeout_s and start_timeout_s must be > 0, got {timeout_s} and {start_timeout_s}")
        self.source, self.rows = source, rows
        count = min(workers, rows)
        self._workers = [Worker(source, timeout_s=timeout_s, start_timeout_s=start_timeout_s) for _ in range(count)]
        self._slots = {} if count else {row: Slot(source) for row in range(rows)}
        self._ever_made = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and let go of all environments; the next command starts them again."""
        parts: list[Worker | Slot] = [*self._workers, *self._slots.values()]
        for part in parts:
            part.close()

    def exchange(self, commands: Mapping[int, Command]) -> dict[int, Answer]:
        """Give commands to rows and wait for what comes of them.

        Args:
            commands: By row.

        Returns:
            An answer for every row commanded, in the order of the rows; also ``Lost`` for others that went down with a neighbour. An
            episode that had ended in this exchange keeps its answer.

        Raises:
            EnvironmentFailedError: If no environment could ever be made, or one breaks its contract.
        """
        answers = self._ask_workers(commands) if self._workers else self._ask_slots(commands)
        for answer in answers.values():
            if isinstance(answer, Crash):
                self._check(answer)
                _logger.debug("%s", answer.details)
        return dict(sorted(answers.items()))

    def _ask_slots(self, commands: Mapping[int, Command]) -> dict[int, Answer]:
        return {row: self._slots[row].answer(command, self._note_made) for row, command in commands.items()}

    def _note_made(self) -> None:
        self._ever_made = True

    def _ask_workers(self, commands: Mapping[int, Command]) -> dict[int, Answer]:
        for index, worker in enumerate(self._workers):
            mine = {row: command for row, command in commands.items() if row % len(self._workers) == index}
            if mine:
                worker.send(mine)
        answers: dict[int, Answer] = {}
        while busy := {worker.connection: worker for worker in self._workers if worker.busy}:
            patience = min(worker.seconds_left for worker in busy.values())
            ready = wait(list(busy), timeout=max(0.0, patience))  # type: ignore[arg-type]
            news = [busy[connection].receive() for connection in ready]  # type: ignore[index]
            news += [worker.overdue() for worker in busy.values() if worker.busy and worker.seconds_left <= 0]
            for found in news:
                answers |= {row: answer for row, answer in found.items() if not (isinstance(answer, Lost) and _ended(answers.get(row)))}
        self._ever_made = self._ever_made or any(worker.ever_made for worker in self._workers)
        return answers

    def _check(self, crash: Crash) -> None:
        """Raise if no other episode could do better."""
        if crash.fatal:
            raise EnvironmentFailedError(f"environment {self.source.name} cannot be evaluated: {crash.error}")
        if crash.unmade and not self._ever_made:
            hint = '; a script that starts worker processes needs `if __name__ == "__main__":` around its calls' if self._workers else ""
            raise EnvironmentFailedError(f"environment {self.source.name} could not be made: {crash.error}{hint}\n{crash.details}".rstrip())


def _ended(answer: Answer | None) -> bool:
    return isinstance(answer, Crash) or (isinstance(answer, Step) and (answer.terminated or answer.truncated))
