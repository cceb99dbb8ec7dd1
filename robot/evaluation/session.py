"""One sitting of a rollout: what is still to be done, and what is written down about it."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flowrl.errors import CheckpointError, ConfigError
from flowrl.train.describe import describe, differences
from flowrl.train.whole import write_whole
from robot.evaluation.episodes import EpisodeResult, Job
from robot.evaluation.log import EPISODES_FILE, EpisodeLog
from robot.evaluation.pool import EnvPool
from robot.evaluation.provenance import checkpoint_hashes, git_revision, refuse_another_run
from robot.evaluation.rollout import EpisodeRunner, chosen_device
from robot.evaluation.summary import Comparison, compare, summarise
from robot.evaluation.videos import Video, chosen_for_video, record_videos

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tqdm.auto import tqdm

    from robot.evaluation.run import Rollout
    from robot.types import Policy

__all__ = ["BASELINE", "POLICY", "RUN_FILE", "SUMMARY_FILE", "Session", "comparisons_with", "earlier_videos"]

POLICY, BASELINE = "policy", "baseline"
RUN_FILE, CONFIG_FILE, SUMMARY_FILE, VIDEO_FOLDER = "run.json", "config.yaml", "summary.json", "videos"


class Session:
    """One sitting of a rollout."""

    def __init__(self, rollout: Rollout, *, resume: bool) -> None:
        self.rollout = rollout
        folder = rollout.folder
        self.identity: dict[str, Any] = {
            "config": describe(rollout),
            "checkpoints": checkpoint_hashes([rollout.policy, rollout.compare_to]),
            "git_revision": git_revision(),
        }
        self.notes: list[str] = []
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
        return chosen_device(self.rollout.device)

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

    def check_rival(self, other: tuple[list[EpisodeResult], dict[str, Any]], seeds: Sequence[int]) -> None:
        """See before any episode is run that there will be something to compare.

        Args:
            other: Results and provenance of the earlier run.
            seeds: Those to be run.

        Raises:
            ConfigError: If it has none of the seeds, or is of another environment.
        """
        results, identity = other
        theirs = {result.seed for result in results if result.arm == POLICY}
        mine = {*seeds, *(result.seed for result in self.log.results.values())}
        if not theirs & mine:
            raise ConfigError(
                f"{self.rollout.against} has seeds {min(theirs)} to {max(theirs)}, none of which is to be run here; a paired comparison "
                "needs the same seeds"
            )
        ours, env = self.identity["config"]["env"], identity["config"]["env"]
        if ours.get("target") != env.get("target"):
            raise ConfigError(
                f"{self.rollout.against} was run in {env.get('target')}, not in {ours.get('target')}; compare in one environment"
            )
        if changed := differences(env, ours):
            self.notes.append(f"The environment of {self.rollout.against} differs: {'; '.join(changed)}.")

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
            "videos": list(videos),
            "notes": self.notes,
            **self.identity,
        }
        return _write_json(self.rollout.folder / SUMMARY_FILE, content)

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
        lines = {line["seed"]: line for line in earlier_videos(folder)}
        if missing := [result for result in chosen if result.seed not in lines]:
            policy = policy or self.rollout.policy.load(self.device)
            try:
                videos = record_videos(pool, policy, missing, folder=folder / VIDEO_FOLDER, seed=self.rollout.seed)
            except Exception as error:  # the evaluation is done; a codec or a renderer is no reason to lose it
                self.notes.append(f"No videos: {type(error).__name__}: {error}")
                videos = []
            lines |= {video.seed: _video_line(video, folder) for video in videos}
        return [lines[result.seed] for result in chosen if result.seed in lines]


def comparisons_with(results: Sequence[EpisodeResult], rivals: Mapping[str, Sequence[EpisodeResult]], *, strict: bool) -> list[Comparison]:
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
    return {"seed": video.seed, "success": video.success, "mp4": mp4, "strip": strip, "exact": video.exact, "kept": video.kept}


def earlier_videos(folder: Path) -> list[dict[str, Any]]:
    """What an earlier sitting recorded and is still there."""
    path = folder / SUMMARY_FILE
    lines = json.loads(path.read_text(encoding="utf-8"))["videos"] if path.is_file() else []
    return [line for line in lines if (folder / line["strip"]).is_file()]


def _write_json(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write whole or not at all; what a reader will find is returned."""
    text = json.dumps(content, indent=2)
    write_whole(path, text + "\n")
    return json.loads(text)
