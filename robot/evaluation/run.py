"""``flowrl rollout``: a policy's success on given seeds, in a folder that can be gone on with and compared."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flowrl.errors import CheckpointError, ConfigError
from flowrl.train.describe import describe
from robot.envs.base import EnvSource
from robot.evaluation.episodes import EpisodeResult, Job
from robot.evaluation.log import EPISODES_FILE, EpisodeLog
from robot.evaluation.pool import EnvPool
from robot.evaluation.provenance import checkpoint_hashes, git_revision, refuse_another_run
from robot.evaluation.rollout import EpisodeRunner
from robot.evaluation.seeds import parse_seeds
from robot.evaluation.summary import Comparison, compare, summarise
from robot.evaluation.videos import Video, chosen_for_video, record_videos
from robot.policies import PolicySource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tqdm.auto import tqdm

    from robot.types import Policy

__all__ = ["BASELINE", "POLICY", "REPORT_FILE", "SUMMARY_FILE", "Rollout", "RolloutSummary", "read_run"]

POLICY, BASELINE = "policy", "baseline"
RUN_FILE, CONFIG_FILE, SUMMARY_FILE, REPORT_FILE, VIDEO_FOLDER = "run.json", "config.yaml", "summary.json", "report.html", "videos"


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
        session = _Session(self, resume=resume)
        recorded: list[dict[str, Any]] = []
        done = False
        try:
            recorded, done = session.run(wanted), True
        finally:  # after Ctrl-C too: the finished episodes are summed up
            results, rivals = list(session.log.results.values()), session.rivals(other)
            comparisons = _comparisons(results, rivals, strict=done)
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


class _Session:
    """One sitting of a rollout."""

    def __init__(self, rollout: Rollout, *, resume: bool) -> None:
        self.rollout = rollout
        self._before: dict[str, Any] | None = None
        folder = rollout.folder
        self.identity: dict[str, Any] = {
            "config": describe(rollout),
            "checkpoints": checkpoint_hashes([rollout.policy, rollout.compare_to]),
            "git_revision": git_revision(),
        }
        self._open(folder, resume=resume)
        self.log = EpisodeLog(folder / EPISODES_FILE)
        self._earlier_s, self._start = self.log.seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time over all sittings."""
        return self._earlier_s + time.perf_counter() - self._start

    @cached_property
    def device(self) -> str:
        """Where the policies run."""
        import torch

        return self.rollout.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def run(self, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Run what is missing, arm by arm, then film."""
        arms = {POLICY: self.rollout.policy} | ({BASELINE: self.rollout.compare_to} if self.rollout.compare_to else {})
        missing = {arm: [Job(seed=seed, arm=arm) for seed in seeds if (arm, seed) not in self.log.results] for arm in arms}
        rows = max(1, min(self.rollout.rows, max(self.rollout.videos, *(len(jobs) for jobs in missing.values()))))
        with EnvPool(self.rollout.env, rows=rows, workers=self.rollout.workers, timeout_s=self.rollout.timeout_s) as pool:
            with self._bar(total=len(arms) * len(seeds), done=len(arms) * len(seeds) - sum(map(len, missing.values()))) as bar:
                policies: dict[str, Policy] = {}
                for arm, jobs in missing.items():
                    if jobs:
                        policies[arm] = arms[arm].load(self.device)
                        self._run_arm(pool, policies[arm], jobs, bar)
            return self._film(pool, policies.get(POLICY), seeds)

    def rivals(self, other: tuple[list[EpisodeResult], dict[str, Any]] | None) -> dict[str, list[EpisodeResult]]:
        """Whom this policy is compared with, by name: the baseline, and the policy of an earlier run."""
        found = {BASELINE: [result for result in self.log.results.values() if result.arm == BASELINE]}
        if other is not None:
            name = Path(str(self.rollout.against)).name
            found[name if name not in (POLICY, BASELINE) else f"run {name}"] = [result for result in other[0] if result.arm == POLICY]
        return {name: results for name, results in found.items() if results}

    def write_summary(self, comparisons: Sequence[Comparison], videos: Sequence[Mapping[str, Any]], *, finished: bool) -> dict[str, Any]:
        """Write ``summary.json``."""
        results = list(self.log.results.values())
        arms = [asdict(summarise(results, arm)) for arm in dict.fromkeys(result.arm for result in results)]
        seconds = max(self.log.seconds, 1e-9)
        content = {
            "env": self.rollout.env.name,
            "finished": finished,
            "arms": arms,
            "comparisons": [comparison.to_json() for comparison in comparisons],
            "wall_time_s": self.log.seconds,
            "episodes_per_s": len(results) / seconds,
            "control_steps_per_s": sum(result.length for result in results) / seconds,
            "videos": videos,
            **self.identity,
        }
        _write_json(self.rollout.folder / SUMMARY_FILE, content)
        return content

    def _open(self, folder: Path, *, resume: bool) -> None:
        """Make sure that the folder is new or holds this very run."""
        path, episodes = folder / RUN_FILE, folder / EPISODES_FILE
        begun = episodes.exists() and episodes.stat().st_size > 0
        if begun and not resume:
            raise ConfigError(f"{folder} already holds a rollout; go on with --resume, or choose another run_dir")
        if begun:
            if not path.is_file():
                raise CheckpointError(f"{folder} holds episodes, but no {RUN_FILE} that tells of which policy; choose another run_dir")
            refuse_another_run(folder, json.loads(path.read_text(encoding="utf-8")), self.identity)
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(self.identity["config"], sort_keys=False), encoding="utf-8")
        _write_json(path, self.identity)

    @contextmanager
    def _bar(self, *, total: int, done: int) -> Iterator[tqdm[Any]]:
        from tqdm.auto import tqdm

        with tqdm(total=total, initial=done, unit="episode") as bar:
            yield bar

    def _run_arm(self, pool: EnvPool, policy: Policy, jobs: Sequence[Job], bar: tqdm[Any]) -> None:
        def note(result: EpisodeResult) -> None:
            self.log.write(result, self.seconds)
            mine = [other for other in self.log.results.values() if other.arm == result.arm]
            crashed = sum(other.crashed for other in mine)
            shown = {"success": f"{sum(other.success for other in mine)}/{len(mine)}"} | ({"crashed": crashed} if crashed else {})
            bar.set_postfix(shown, refresh=False)
            bar.update()

        EpisodeRunner(pool=pool, policy=policy, seed=self.rollout.seed, on_episode=note).run(jobs)

    def _film(self, pool: EnvPool, policy: Policy | None, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Record what is to be recorded and is not there yet."""
        folder = self.rollout.folder
        mine = [result for result in self.log.results.values() if result.arm == POLICY and result.seed in set(seeds)]
        chosen = chosen_for_video(mine, self.rollout.videos)
        lines = {line["seed"]: line for line in _earlier_videos(folder)}
        if missing := [result for result in chosen if result.seed not in lines]:
            policy = policy or self.rollout.policy.load(self.device)
            videos = record_videos(pool, policy, missing, folder=folder / VIDEO_FOLDER, seed=self.rollout.seed)
            lines |= {video.seed: _video_line(video, folder) for video in videos}
        return [lines[result.seed] for result in chosen if result.seed in lines]


def _comparisons(results: Sequence[EpisodeResult], rivals: Mapping[str, Sequence[EpisodeResult]], *, strict: bool) -> list[Comparison]:
    """The policy against each rival; a lack of common seeds is an error if ``strict``, not after an interruption."""
    mine, found = [result for result in results if result.arm == POLICY], []
    for name, theirs in rivals.items():
        try:
            found.append(compare(mine, theirs, names=(POLICY, name)))
        except ConfigError:
            if strict:
                raise
    return found


def _video_line(video: Video, folder: Path) -> dict[str, Any]:
    mp4 = None if video.mp4 is None else video.mp4.relative_to(folder).as_posix()
    strip = video.strip.relative_to(folder).as_posix()
    return {"seed": video.seed, "success": video.success, "mp4": mp4, "strip": strip, "exact": video.exact}


def _earlier_videos(folder: Path) -> list[dict[str, Any]]:
    """What an earlier sitting recorded and is still there."""
    path = folder / SUMMARY_FILE
    lines = json.loads(path.read_text(encoding="utf-8"))["videos"] if path.is_file() else []
    return [line for line in lines if (folder / line["strip"]).is_file()]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
