"""Recording: scripted experts act on given seeds, and what they did becomes one HDF5 file."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm.auto import tqdm

from flowrl.errors import CheckpointError, MissingExtraError, require
from flowrl.train.describe import describe, differences
from robot.demonstrations.hdf5 import finish, new_file, split_names
from robot.demonstrations.worker import close_env, open_env, play_seed
from robot.envs.base import EnvSource

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

__all__ = ["Recorded", "Recording"]

_logger = logging.getLogger("flowrl.robot")
LOG, CONFIG = "seeds.jsonl", "config.json"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a recording came to.

    Attributes:
        path: Of the HDF5 file.
        log: Of the JSON lines, one per seed: ``seed``, ``success``, ``kept``, ``length``, ``return``, ``seconds``, ``error``.
        episodes: Episodes in the file.
        steps: Control steps in it.
        tried: Seeds that were played.
        successes: Of them, solved.
        failed: Of them, ended by an error.
    """

    path: Path
    log: Path
    episodes: int
    steps: int
    tried: int
    successes: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Record demonstrations of a task's scripted expert.

    Finished episodes survive a stop: ``run(resume=True)`` goes on with the other seeds.

    Attributes:
        env: The environment; its expert acts.
        out: The HDF5 file to write, in robomimic's layout; its log goes beside it.
        seeds: Of the episodes: ``"0:200"`` (200 left out), ``"0:50,100"``.
        keep: Which episodes go into the file.
        enough: Stop when so many were kept, in the order of the seeds; None plays all seeds.
        action_noise: Standard deviation of a disturbance of the executed action, as a share of half the action's range, >= 0; what is
            recorded is what the expert wanted, so the data show how to recover.
        workers: Processes that play episodes; 0 plays in this one. The file is the same.
        validation_share: Share of the episodes in the file's ``mask/valid``, in [0, 1).

    Raises:
        ValueError: If a number is out of range or the seeds cannot be read.
    """

    env: EnvSource
    out: Path
    seeds: str
    keep: Literal["successes", "all"] = "successes"
    enough: int | None = None
    action_noise: float = 0.0
    workers: int = 0
    validation_share: float = 0.1

    def __post_init__(self) -> None:
        from robot.evaluation.seeds import parse_seeds

        object.__setattr__(self, "out", Path(self.out))
        parse_seeds(self.seeds)
        split_names(2, self.validation_share, 0)
        if not (0 <= self.action_noise < float("inf")) or self.workers < 0 or (self.enough is not None and self.enough < 1):
            given = f"action_noise={self.action_noise}, workers={self.workers}, enough={self.enough}"
            raise ValueError(f"a recording needs action_noise >= 0, workers >= 0 and enough >= 1 (or null), got {given}")

    @property
    def parts(self) -> Path:
        """Folder of the finished episodes until the file is written."""
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def log(self) -> Path:
        """The log beside the finished file."""
        return self.out.with_name(f"{self.out.stem}.{LOG}")

    def run(self, *, resume: bool = False) -> Recorded:
        """Play the seeds and write the file.

        Args:
            resume: Go on with a recording that was stopped; with the same settings, but ``workers``, ``enough`` and ``seeds`` may differ.

        Raises:
            MissingExtraError: If the environment cannot run here.
            CheckpointError: If there is a recording already, or it was made with other settings.
            ValueError: If no episode was kept.
        """
        if problems := self.env.problems():
            raise MissingExtraError(f"{self.env.name} cannot run here: {'; '.join(problems)}")
        require("h5py", "robot")
        lines = self._open(resume=resume)
        self._play(lines)
        kept = self._kept(lines)
        if not kept:
            solved = sum(line["success"] for line in lines.values())
            errors = next((f"; the first error: {line['error']}" for line in lines.values() if line["error"]), "")
            raise ValueError(f"no episode to keep: {solved} of {len(lines)} were solved{errors}; keep=all records failures too")
        self._merge(kept)
        self.log.write_text("".join(f"{json.dumps(lines[seed])}\n" for seed in self._seeds() if seed in lines), encoding="utf-8")
        shutil.rmtree(self.parts)
        return self._recorded(lines, kept)

    def _seeds(self) -> Sequence[int]:
        from robot.evaluation.seeds import parse_seeds

        return parse_seeds(self.seeds)

    def _settings(self) -> dict[str, Any]:
        return {"env": describe(self.env), "keep": self.keep, "action_noise": self.action_noise}

    def _open(self, *, resume: bool) -> dict[int, dict[str, Any]]:
        """The log so far, after making sure that it may be continued."""
        if self.out.exists():
            raise CheckpointError(f"{self.out} is there already; choose another out, or delete it")
        config = self.parts / CONFIG
        if not config.is_file():
            self.parts.mkdir(parents=True, exist_ok=True)
            config.write_text(json.dumps(self._settings()), encoding="utf-8")
        elif not resume:
            raise CheckpointError(f"{self.parts} holds a recording that was stopped; go on with --resume, or delete the folder")
        if changed := differences(json.loads(config.read_text(encoding="utf-8")), json.loads(json.dumps(self._settings()))):
            raise CheckpointError(f"the recording in {self.parts} was begun with other settings: {'; '.join(changed)}")
        return {line["seed"]: line for line in _read_lines(self.parts / LOG)}

    def _play(self, lines: dict[int, dict[str, Any]]) -> None:
        """Play the seeds that the log does not have, until there are enough."""
        seeds = self._seeds()
        kept = solved = 0
        fresh = self._episodes([seed for seed in seeds if seed not in lines])
        with (self.parts / LOG).open("a", encoding="utf-8") as log, tqdm(total=len(seeds), unit="episode") as bar, closing(fresh):
            for seed in seeds:
                if kept == self.enough:
                    break
                if seed not in lines:
                    lines[seed] = next(fresh)
                    log.write(f"{json.dumps(lines[seed])}\n")
                    log.flush()
                    _tell(lines[seed])
                kept, solved = kept + lines[seed]["kept"], solved + lines[seed]["success"]
                bar.set_postfix(kept=kept, solved=solved, refresh=False)
                bar.update()

    def _episodes(self, seeds: Sequence[int]) -> Generator[dict[str, Any], None, None]:
        """Log lines of the seeds, in their order."""
        settings = (self.action_noise, self.keep == "all", str(self.parts))
        if self.workers == 0:
            open_env(self.env)
            try:
                yield from (play_seed(seed, *settings) for seed in seeds)
            finally:
                close_env()
            return
        context = multiprocessing.get_context("spawn")
        awaited = None
        pool = ProcessPoolExecutor(self.workers, context, initializer=open_env, initargs=(self.env,))
        try:
            for seed, answer in [(seed, pool.submit(play_seed, seed, *settings)) for seed in seeds]:
                awaited = seed
                yield answer.result()
        except BrokenProcessPool as error:
            raise CheckpointError(
                f"a worker died on seed {awaited} or one of the next; what was finished is kept: go on with --resume, "
                "and leave that seed out if it dies again (was the memory used up?)"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _kept(self, lines: dict[int, dict[str, Any]]) -> list[int]:
        kept = [seed for seed in self._seeds() if seed in lines and lines[seed]["kept"]]
        return kept[: self.enough]

    def _merge(self, kept: Sequence[int]) -> None:
        h5py = require("h5py", "robot")
        with new_file(self.out, self.env.action, self._env_args()) as file:
            for index, seed in enumerate(kept):
                with h5py.File(self.parts / f"{seed}.hdf5", "r") as part:
                    part.copy("episode", file["data"], name=f"demo_{index}")
            finish(file, self.validation_share, seed=0)

    def _env_args(self) -> dict[str, Any]:
        """What robomimic wants to know about the environment, and what flowrl does."""
        source: Any = self.env
        while hasattr(source, "env"):  # wrapped, such as by NoisySensors
            source = source.env
        own = getattr(source, "robomimic", None)
        known = own() if callable(own) else {"env_name": self.env.name, "type": 2, "env_kwargs": {}}
        return {**known, "flowrl": self._settings()}

    def _recorded(self, lines: dict[int, dict[str, Any]], kept: Sequence[int]) -> Recorded:
        return Recorded(
            path=self.out,
            log=self.log,
            episodes=len(kept),
            steps=sum(lines[seed]["length"] for seed in kept),
            tried=len(lines),
            successes=sum(line["success"] for line in lines.values()),
            failed=sum(line["error"] is not None for line in lines.values()),
        )


def _tell(line: dict[str, Any]) -> None:
    if line["error"]:
        _logger.warning("seed %s: %s", line["seed"], line["error"])


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a log; one that a crash cut off is dropped from the file too."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    return [json.loads(text) for text in whole.splitlines()]
