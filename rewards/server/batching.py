"""One thread that scores, fed by many requests: what waits is scored together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rewards.remote.wire import Answer, Question
from rewards.server.scoring import score_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrl.rl import GroupReward, Reward
    from rewards.server.load import Load

__all__ = ["ExpiredError", "Job", "RewardThread"]


class ExpiredError(Exception):
    """Nobody waits for these scores any more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A question that waits for its scores.

    Attributes:
        question: Samples, prompts and groups.
        deadline: When nobody waits any more, on ``time.monotonic``.
        arrived: Likewise, when it began to wait.
        answer: What the asker waits for.
    """

    question: Question
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    answer: Future[Answer] = field(default_factory=Future)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample; only equal ones are scored together."""
        return tuple(self.question.samples.shape[1:])


class RewardThread:
    """Scores on one thread, so that a reward needs no lock of its own and a GPU one stream of work."""

    def __init__(self, reward: Reward | GroupReward, *, device: torch.device | str, batch: int, window_s: float, load: Load) -> None:
        """Make it; :meth:`start` starts it.

        Args:
            reward: What scores.
            device: Where samples are put before they are scored.
            batch: Rows scored at once; a group that is larger stays whole.
            window_s: How long a question waits for others while the thread is idle: those that are arriving (:attr:`arriving`), and those
                whose askers had theirs scored together with others just now and will ask again.
            load: Is told what was done.
        """
        self.reward, self.device, self.batch, self.window_s, self.load = reward, device, batch, window_s, load
        self.busy_since: float | None = None
        self.arriving = 0  # questions that are being read; whoever reads them keeps the count
        self._together = 0  # questions in the latest batch
        self._jobs: deque[Job | _Call] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="reward", daemon=True)

    def start(self) -> None:
        """Begin to score."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Score what waits, then end; False if that takes longer than ``timeout_s``."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        with self._changed:
            return sum(len(job.question) for job in self._jobs if isinstance(job, Job))

    def busy_s(self) -> float:
        """How long the present call of the reward has taken; 0 if there is none."""
        since = self.busy_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, job: Job) -> Future[Answer]:
        """Have a question scored."""
        self._put(job)
        return job.answer

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Have something else done between two batches."""
        call = _Call(function)
        self._put(call)
        return call.answer

    def _put(self, job: Job | _Call) -> None:
        with self._changed:
            if self._stopped:
                job.answer.set_exception(ExpiredError("the server is shutting down"))
                return
            self._jobs.append(job)
            self._changed.notify()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            self.busy_since = time.monotonic()
            if isinstance(taken, _Call):
                taken.run()
            else:
                self._score(taken)
            self.busy_since = None

    def _take(self) -> list[Job] | _Call | None:
        """What is done next; None when stopped and nothing waits."""
        with self._changed:
            while not self._jobs:
                if self._stopped:
                    return None
                self._changed.wait()
            first = self._jobs.popleft()
            return first if isinstance(first, _Call) else self._company(first)

    def _company(self, first: Job) -> list[Job]:
        """The first job with all others of its shape that fit; waits a moment for those that are likely to come."""
        jobs, until = [first], time.monotonic() + self.window_s
        while (room := self.batch - sum(len(job.question) for job in jobs)) > 0:
            fitting = next(
                (job for job in self._jobs if isinstance(job, Job) and job.shape == first.shape and len(job.question) <= room), None
            )
            if fitting is not None:
                self._jobs.remove(fitting)
                jobs.append(fitting)
            elif not self._expects_company() or not self._changed.wait(until - time.monotonic()):
                break
        self._together = len(jobs)
        return jobs

    def _expects_company(self) -> bool:
        return not self._stopped and (self.arriving > 0 or self._together > 1)

    def _score(self, jobs: Sequence[Job]) -> None:
        wanted = [job for job in jobs if self._is_wanted(job)]
        if not wanted:
            return
        try:
            answers = self._answers(wanted)
        except Exception as error:  # every asker is told; the thread lives on
            self.load.failed(sum(len(job.question) for job in wanted))
            for job in wanted:
                job.answer.set_exception(error)
            return
        for job, answer in zip(wanted, answers, strict=True):
            job.answer.set_result(answer)

    def _is_wanted(self, job: Job) -> bool:
        if not job.answer.set_running_or_notify_cancel():
            return False
        if time.monotonic() < job.deadline:
            return True
        job.answer.set_exception(ExpiredError("it waited longer for its turn than it may take"))
        return False

    def _answers(self, jobs: Sequence[Job]) -> list[Answer]:
        """Scores of all jobs, each job's own."""
        start = time.monotonic()
        samples = torch.cat([job.question.samples for job in jobs])
        prompts = [prompt for job in jobs for prompt in job.question.prompts]
        groups = _apart([job.question.groups for job in jobs])
        whole = score_rows(self.reward, samples, prompts, groups, batch=self.batch, device=self.device)
        self.load.scored(rows=len(prompts), missing=len(whole.reasons), jobs=len(jobs), seconds=time.monotonic() - start)
        return _split(whole, [len(job.question) for job in jobs])


@dataclass(frozen=True, eq=False)
class _Call:
    function: Callable[[], Any]
    answer: Future[Any] = field(default_factory=Future)

    def run(self) -> None:
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(self.function())
        except Exception as error:  # the asker is told
            self.answer.set_exception(error)


def _apart(groups: Sequence[torch.Tensor]) -> torch.Tensor:
    """The groups of several questions, renumbered so that those of different questions differ."""
    numbered, first = [], 0
    for ids in groups:
        _, own = ids.unique(return_inverse=True)
        numbered.append(own + first)
        first += int(own.max()) + 1
    return torch.cat(numbered)


def _split(whole: Answer, sizes: Sequence[int]) -> list[Answer]:
    answers, first = [], 0
    for size in sizes:
        parts = {name: scores[first : first + size] for name, scores in whole.parts.items()}
        reasons = {row - first: reason for row, reason in whole.reasons.items() if first <= row < first + size}
        answers.append(Answer(parts=parts, reasons=reasons))
        first += size
    return answers
