"""What a search and the evaluation of fixed weights have in common: the run folder, the arena, the conclusion."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from flowrl.errors import ConfigError
from flowrl.train.describe import describe
from flowrl.train.whole import write_whole
from robot.evaluation.log import EPISODES_FILE, EpisodeLog
from robot.evaluation.pool import EnvPool
from robot.evaluation.provenance import checkpoint_hashes, git_revision, refuse_another_run
from robot.evaluation.rollout import chosen_device
from robot.gpc import Composition, GPCPolicy
from robot.search.arena import Arena
from robot.search.charts import write_plot
from robot.search.outcomes import Baseline, outcomes, report_arms
from robot.search.page import write_report
from robot.search.results import CompositionResult, Selection
from robot.search.signal import disagreement_signal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from robot.envs.base import EnvSource
    from robot.search.simplex import Weights

__all__ = ["Contest", "ContestJob", "conclude", "open_contest"]

RUN_FILE, CONFIG_FILE = "run.json", "config.yaml"
REPORT = "report"


class ContestJob(Protocol):
    """What searches and evaluations are configured with."""

    @property
    def env(self) -> EnvSource:
        """The environment."""
        ...

    @property
    def composition(self) -> Composition:
        """The policies."""
        ...

    @property
    def run_dir(self) -> Path:
        """Folder to write into."""
        ...

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """What is run besides the parents."""
        ...

    @property
    def rows(self) -> int:
        """Environments side by side."""
        ...

    @property
    def workers(self) -> int:
        """Processes for them."""
        ...

    @property
    def seed(self) -> int:
        """Of the policies' noise."""
        ...

    @property
    def timeout_s(self) -> float:
        """Of a step of the environment."""
        ...

    @property
    def device(self) -> str | None:
        """Where the policies run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A run under way.

    Attributes:
        job: Its configuration.
        policy: The composed policies.
        arena: Where they act.
        identity: Configuration, checkpoints by their hash, revision of the code.
    """

    job: ContestJob
    policy: GPCPolicy
    arena: Arena
    identity: dict[str, Any]


@contextmanager
def open_contest(job: ContestJob, *, resume: bool) -> Iterator[Contest]:
    """Check environment and folder, load the policies, keep the environments until the end.

    Args:
        job: What to run.
        resume: Go on with the episodes in its folder.

    Raises:
        ConfigError: If the environment cannot run here, or the folder holds episodes already, or those of another configuration.
        CheckpointError: If a checkpoint is not the one that the run began with.
    """
    if problems := job.env.problems():
        raise ConfigError(f"{job.env.name} cannot run here: " + "; ".join(problems))
    folder = Path(job.run_dir)
    identity = {"config": describe(job), "checkpoints": checkpoint_hashes(job.composition), "git_revision": git_revision()}
    _open_folder(folder, identity, resume=resume)
    policy = job.composition.load(device=chosen_device(job.device))
    pool = EnvPool(job.env, rows=job.rows, workers=job.workers, timeout_s=job.timeout_s)
    with Arena(pool, policy, EpisodeLog(folder / EPISODES_FILE), seed=job.seed) as arena:
        yield Contest(job=job, policy=policy, arena=arena, identity=identity)


def conclude(contest: Contest, weights: Weights, seeds: Sequence[int], selection: Selection | None) -> CompositionResult:
    """Run the report, and write ``results.json``, the plot and ``report.html``.

    Args:
        contest: The run.
        weights: To judge.
        seeds: Of the report.
        selection: How the weights were chosen; None for given ones.
    """
    job, members = contest.job, contest.policy.member_names
    found = contest.arena.play(REPORT, report_arms(weights, _useful(contest)), seeds)
    judged = next(arm for arm in found if arm.role in ("composed", "parent") and arm.weights == weights)
    result = CompositionResult(
        run_dir=Path(job.run_dir),
        env=job.env.name,
        members=members,
        operator=job.composition.operator,
        weights=weights,
        report_seeds=len(seeds),
        outcomes=tuple(outcomes(found, members)),
        selection=selection,
        signal=disagreement_signal(found[judged]),
        identity=contest.identity,
        ran=contest.arena.ran,
        seconds=contest.arena.seconds,
    )
    result.save()
    write_plot(result)
    write_report(result)
    return result


def _useful(contest: Contest) -> list[Baseline]:
    """The baselines that differ from what is run anyway."""
    sampling, operator = contest.policy.sampling, contest.job.composition.operator
    idle: dict[Baseline, bool] = {
        "sde": sampling is not None and sampling.sampler == "sde",
        "uniform": operator in ("and", "average"),
        "average": operator == "average",
    }
    return [name for name in contest.job.baselines if not idle[name]]


def _open_folder(folder: Path, identity: dict[str, Any], *, resume: bool) -> None:
    """Make sure that the folder is new or holds episodes of the same environment, policies and noise."""
    run_file = folder / RUN_FILE
    if run_file.exists() and not resume:
        raise ConfigError(f"{folder} already holds episodes; go on with --resume, or choose another run_dir")
    if run_file.exists():
        refuse_another_run(folder, _decisive(json.loads(run_file.read_text(encoding="utf-8"))), _decisive(identity))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(identity["config"], sort_keys=False, allow_unicode=True), encoding="utf-8")
    write_whole(run_file, json.dumps(identity, indent=2) + "\n")


def _decisive(identity: dict[str, Any]) -> dict[str, Any]:
    """What decides how an episode goes, besides its seed and the weights that its line names."""
    config = identity["config"]
    composition = dict(config["composition"])
    composition["members"] = [{key: value for key, value in member.items() if key != "weight"} for member in composition["members"]]
    return {"config": {"env": config["env"], "composition": composition, "seed": config["seed"]}, "checkpoints": identity["checkpoints"]}
