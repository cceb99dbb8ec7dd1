"""Episodes in closed loop: rows of environments, one policy that acts for all of them at once."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from robot.envs.base import Frame
from robot.evaluation.episodes import EpisodeResult, Job
from robot.evaluation.pool import EnvPool
from robot.evaluation.slot import Act, Answer, Command, Crash, Lost, Reset, Step
from robot.execution import ChunkExecutor
from robot.types import ActionSpec, Policy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robot.envs.base import EnvSource

__all__ = ["EpisodeRunner", "OnEpisode", "OnPicture", "chosen_device", "policy_device", "run_episodes"]

_logger = logging.getLogger("flowrl.robot.evaluation")

OnEpisode: TypeAlias = Callable[[EpisodeResult], None]
"""Called with each result as soon as its episode has ended."""

OnPicture: TypeAlias = Callable[[Job, "NDArray[np.uint8]"], None]
"""Called with the pictures of an episode in their order, the reset's first."""


def run_episodes(
    env: EnvSource | EnvPool,
    policy: Policy,
    jobs: Sequence[Job],
    *,
    rows: int = 8,
    workers: int = 0,
    on_episode: OnEpisode | None = None,
    seed: int = 0,
) -> list[EpisodeResult]:
    """Run episodes, as many side by side as there are rows.

    Args:
        env: What to act in; a pool is used with its own rows and workers, and left open for further episodes.
        policy: Who acts.
        jobs: The episodes, started in this order.
        rows: Environments side by side, and the largest batch the policy gets.
        workers: Processes that hold them; 0 for none but this one.
        on_episode: Called with each result as soon as its episode has ended.
        seed: Of the policy's noise; an episode's noise depends on it, on the episode's own seed and on nothing else.

    Returns:
        One result per job, in the order of the jobs.

    Raises:
        ValueError: If two jobs share arm, seed and variation.
        EnvironmentFailedError: If no environment can be made, or it is not what it has to be.
    """
    if isinstance(env, EnvPool):
        return EpisodeRunner(pool=env, policy=policy, on_episode=on_episode, seed=seed).run(jobs)
    with EnvPool(env, rows=max(1, min(rows, len(jobs))), workers=workers) as pool:
        return EpisodeRunner(pool=pool, policy=policy, on_episode=on_episode, seed=seed).run(jobs)


@dataclass
class _Course:
    """An episode under way."""

    job: Job
    frame: Frame | None = None
    queued: int = 0
    length: int = 0
    rewards: list[float] = field(default_factory=list)
    clipped: int = 0
    success_at: int | None = None
    solved_now: bool = False

    def note(self, step: Step) -> None:
        """Take in a control step."""
        self.length += 1
        self.rewards.append(step.reward)
        self.clipped += step.clipped
        self.solved_now = step.success
        if step.success and self.success_at is None:
            self.success_at = self.length

    def result(self, summary: Mapping[str, Any], *, terminated: bool, truncated: bool, error: str | None) -> EpisodeResult:
        """What became of it; a crashed one is no success, whatever came before."""
        well = error is None
        return EpisodeResult(
            arm=self.job.arm,
            seed=self.job.seed,
            success=well and self.success_at is not None,
            success_at=self.success_at if well else None,
            success_at_end=well and self.solved_now,
            terminated=terminated,
            truncated=truncated,
            crashed=not well,
            error=error,
            return_=float(sum(self.rewards)),
            max_reward=max(self.rewards, default=None),
            length=self.length,
            clipped=self.clipped,
            chunks=int(summary.get("chunks", 0)),
            latency_s=dict(summary.get("latency_s") or {}),
            disagreement=summary.get("disagreement"),
        )


@dataclass(kw_only=True)
class EpisodeRunner:
    """Keeps every row busy until no job is left.

    Rows whose actions are used up wait until those of all are, so that the policy is asked for all rows at once. Where the environments
    share few processors, waiting costs nothing: the others are stepped meanwhile.

    Attributes:
        pool: The environments.
        policy: Who acts.
        seed: Of the policy's noise.
        on_episode: Called with each result.
        on_picture: Called with each picture; None draws none.
        picture_every: Draw every so many control steps, and the last.

    Raises:
        ValueError: If the policy's actions are not the environment's.
    """

    pool: EnvPool
    policy: Policy
    seed: int = 0
    on_episode: OnEpisode | None = None
    on_picture: OnPicture | None = None
    picture_every: int = 1

    def __post_init__(self) -> None:
        _check_fit(self.policy.action, self.pool.source.action, self.pool.source.name)
        self._executor = ChunkExecutor(self.policy, seed=self.seed, device=policy_device(self.policy))
        self._jobs: deque[Job] = deque()
        self._courses: dict[int, _Course] = {}
        self._results: dict[tuple[str, int, int | None], EpisodeResult] = {}

    def run(self, jobs: Sequence[Job]) -> list[EpisodeResult]:
        """Run all jobs.

        Returns:
            Their results, in their order.

        Raises:
            ValueError: If two jobs share arm, seed and variation.
            EnvironmentFailedError: If no environment can be made, or it is not what it has to be.
        """
        keys = [job.key for job in jobs]
        if len(set(keys)) < len(keys):
            raise ValueError(
                f"jobs are told apart by arm, seed and variation, but {len(keys) - len(set(keys))} of {len(keys)} are repetitions"
            )
        self._jobs, self._courses, self._results = deque(jobs), {}, {}
        with torch.no_grad():
            while self._jobs or self._courses:
                self._round()
        return [self._results[key] for key in keys]

    def _round(self) -> None:
        """Start what can start, act where it is time, take in what comes back."""
        commands: dict[int, Command] = self._starts()
        commands |= {row: Act(action) for row, action in self._actions(ask=not commands).items()}
        for row, answer in self.pool.exchange(commands).items():
            if row in self._courses:
                self._take(row, answer)

    def _starts(self) -> dict[int, Command]:
        """Free rows take the next jobs; rows that lost their environment begin theirs again."""
        for row in range(self.pool.rows):
            if row not in self._courses and self._jobs:
                self._courses[row] = _Course(self._jobs.popleft())
        begun = [row for row, course in self._courses.items() if course.frame is None]
        for row in begun:
            job = self._courses[row].job
            self._executor.start(row, seed=job.seed, weights=job.weights, variation=job.variation)
        pictures = 0 if self.on_picture is None else self.picture_every
        return {row: Reset(seed=self._courses[row].job.seed, pictures=pictures) for row in begun}

    def _actions(self, *, ask: bool) -> dict[int, NDArray[np.float32]]:
        """The next action of every row that still has one; if none has, of all rows.

        Args:
            ask: Whether the policy may be asked; better wait while rows are being reset, for they need actions too.
        """
        alive = {row: course for row, course in sorted(self._courses.items()) if course.frame is not None}
        acting = {row: course for row, course in alive.items() if course.queued} or (alive if ask else {})
        if not acting:
            return {}
        actions = self._executor.actions({row: course.frame for row, course in acting.items() if course.frame is not None})
        for course in acting.values():
            course.queued = (course.queued or self.policy.execute) - 1
        broken = [row for row, action in actions.items() if not np.isfinite(action).all()]
        for row in broken:
            self._end(row, error=self._blame(row, actions[row]))
        return {row: action for row, action in actions.items() if row not in broken}

    def _blame(self, row: int, action: NDArray[np.float32]) -> str:
        name = getattr(self.policy, "name", "") or type(self.policy).__name__
        why = self._executor.summary(row).get("error") or action.tolist()
        return f"policy {name} returned a non-finite action at control step {self._courses[row].length + 1}: {why}"

    def _take(self, row: int, answer: Answer) -> None:
        """Take in what became of a row."""
        course = self._courses[row]
        if isinstance(answer, Lost):
            self._courses[row] = _Course(course.job)
        elif isinstance(answer, Crash):
            self._end(row, error=answer.error)
        else:
            self._advance(row, course, answer)

    def _advance(self, row: int, course: _Course, step: Step) -> None:
        if course.frame is not None:  # else it answers the reset
            course.note(step)
        course.frame = step.frame
        if self.on_picture is not None and step.picture is not None:
            self.on_picture(course.job, step.picture)
        overlong = course.length >= self.pool.source.max_steps
        if step.terminated or step.truncated or overlong:
            self._end(row, terminated=step.terminated, truncated=step.truncated or (overlong and not step.terminated))

    def _end(self, row: int, *, terminated: bool = False, truncated: bool = False, error: str | None = None) -> None:
        course = self._courses.pop(row)
        result = course.result(self._executor.summary(row), terminated=terminated, truncated=truncated, error=error)
        self._results[course.job.key] = result
        if error is not None:
            _logger.warning("%s, seed %d: crashed and counts as no success: %s", self.pool.source.name, result.seed, error)
        if self.on_episode is not None:
            self.on_episode(result)


def _check_fit(policy: ActionSpec, env: ActionSpec, name: str) -> None:
    if policy != env:
        told = [f"{spec.names} at {spec.control_rate_hz:g} Hz, rotation {spec.rotation}" for spec in (policy, env)]
        raise ValueError(
            f"the policy acts by {told[0]}; {name} takes {told[1]}; train it for this environment, or give its adapter the names"
        )


def chosen_device(wanted: str | None) -> str:
    """Where policies are to run: where it is said, else on a GPU if there is one."""
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def policy_device(policy: Policy) -> torch.device | str:
    """Where a policy lives: what it says, else where its network or its first member does."""
    if (device := getattr(policy, "device", None)) is not None:
        return device
    if isinstance(network := getattr(policy, "network", None), torch.nn.Module):
        return next((parameter.device for parameter in network.parameters()), "cpu")
    found = [policy_device(member) for member in getattr(policy, "policies", ())]
    return next((device for device in found if str(device) != "cpu"), "cpu")
