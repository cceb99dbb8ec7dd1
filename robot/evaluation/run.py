"""``flowrl rollout``: a policy's success on given seeds, in a folder that can be gone on with and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.errors import CheckpointError, ConfigError
from robot.envs.base import EnvSource
from robot.evaluation.episodes import EpisodeResult
from robot.evaluation.log import EPISODES_FILE, EpisodeLog
from robot.evaluation.seeds import parse_seeds
from robot.evaluation.session import RUN_FILE, Session, comparisons_with, earlier_videos
from robot.evaluation.summary import Comparison
from robot.policies import PolicySource

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Rollout", "RolloutSummary", "read_run"]

REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class RolloutSummary:
    """What a rollout found.

    Attributes:
        run_dir: Where everything is.
        results: Every finished episode of the folder.
        comparisons: This policy against others on common seeds.
        content: What ``summary.json`` holds.
    """

    run_dir: Path
    results: tuple[EpisodeResult, ...]
    comparisons: tuple[Comparison, ...]
    content: Mapping[str, Any]

    @property
    def report(self) -> Path:
        """The page."""
        return self.run_dir / REPORT_FILE


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Evaluate a policy in closed loop on given seeds.

    Attributes:
        env: What to act in.
        policy: Who acts.
        run_dir: Where results go.
        seeds: Of the episodes, ``A:B`` or several such ranges; the command line may give others.
        rows: Environments side by side, and the largest batch the policy gets.
        workers: Processes that hold them; 0 keeps them in this one, where a hanging environment cannot be ended.
        videos: How many episodes to film: failures first, then successes.
        seed: Of the policy's noise.
        compare_to: Another policy, run on the same seeds and compared pair by pair.
        against: The run_dir of an earlier rollout in the same environment, compared on the common seeds.
        timeout_s: How long a step of the environment may take before it counts as hung, > 0.
        device: Where the policies run; None takes a GPU if there is one.

    Raises:
        ConfigError: If a number is out of range or ``seeds`` cannot be read.
    """

    env: EnvSource
    policy: PolicySource
    run_dir: Path
    seeds: str = "100000:100050"
    rows: int = 16
    workers: int = 0
    videos: int = 4
    seed: int = 0
    compare_to: PolicySource | None = None
    against: Path | None = None
    timeout_s: float = 60.0
    device: str | None = None

    def __post_init__(self) -> None:
        parse_seeds(self.seeds)
        if self.rows < 1 or self.workers < 0 or self.videos < 0 or not self.timeout_s > 0:
            given = f"rows={self.rows}, workers={self.workers}, videos={self.videos}, timeout_s={self.timeout_s}"
            raise ConfigError(f"a rollout needs rows >= 1, workers >= 0, videos >= 0 and timeout_s > 0, got {given}")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_dir)

    def run(self, seeds: str | Sequence[int] | None = None, *, resume: bool = False) -> RolloutSummary:
        """Run the episodes that are not there yet, film some, compare, and write it all down.

        Args:
            seeds: Instead of the field's.
            resume: Go on in a folder that holds episodes: those are kept.

        Raises:
            ConfigError: If the environment cannot run here, the folder holds another run, or there is nothing to compare with.
            CheckpointError: If a checkpoint is not the one that the run began with.
        """
        from robot.evaluation.report import write_report

        wanted = parse_seeds(self.seeds if seeds is None else seeds)
        if problems := self.env.problems():
            raise ConfigError(f"{self.env.name} cannot run here: " + "; ".join(problems))
        other = None if self.against is None else read_run(Path(self.against))
        session = Session(self, resume=resume)
        if other is not None:
            session.check_rival(other, wanted)
        recorded, done = earlier_videos(self.folder), False
        try:
            recorded, done = session.run(wanted), True
        finally:  # after Ctrl-C too: the finished episodes are summed up
            results, rivals = list(session.log.results.values()), session.rivals(other)
            comparisons = comparisons_with(results, rivals, strict=done)
            content = session.write_summary(comparisons, recorded, finished=done)
            if results:
                write_report(self.folder, content, results, rivals)
        return RolloutSummary(run_dir=self.folder, results=tuple(results), comparisons=tuple(comparisons), content=content)


def read_run(folder: Path) -> tuple[list[EpisodeResult], dict[str, Any]]:
    """Results and provenance of a rollout's folder.

    Raises:
        CheckpointError: If it holds none.
    """
    path = folder / RUN_FILE
    results = list(EpisodeLog(folder / EPISODES_FILE).results.values())
    if not (path.is_file() and results):
        raise CheckpointError(f"{folder} holds no finished rollout ({RUN_FILE} and {EPISODES_FILE}); give the run_dir of a flowrl rollout")
    return results, json.loads(path.read_text(encoding="utf-8"))
