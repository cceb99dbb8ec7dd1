"""One run of a gate's training: its set-up, its loop, and what it writes."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, Self, cast

import torch
import yaml
from tqdm.auto import tqdm

from flowrl.errors import CheckpointError, ConfigError, NonFiniteError
from flowrl.train.checkpoint import CheckpointFolder, check_complete
from flowrl.train.describe import describe
from flowrl.train.figures import figure
from flowrl.train.metrics import MetricsLog
from flowrl.train.resume import CONFIG_FILE, refuse_other_config, starting_point
from flowrl.train.signals import Stopped, StopRequest
from robot.evaluation.pool import EnvPool
from robot.evaluation.rollout import chosen_device
from robot.evaluation.seeds import parse_seeds
from robot.gating.collecting import Collector
from robot.gating.evaluation import Evaluator
from robot.gating.file import GATES, model_fingerprint, save_gate
from robot.gating.learner import Learner
from robot.gating.report import REPORT_FILE, write_report
from robot.gating.summary import GateSummary, Progress

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from robot.gating.collecting import Collected
    from robot.gating.gate import Gate
    from robot.gating.training import GateTraining
    from robot.world_action import WorldActionModel

__all__ = ["Session"]

# What may change between a run and its resumption; more updates stretch the rest of a schedule. The model is known by its fingerprint.
_FREE = (
    "run_dir", "updates", "micro_batch", "evaluation_seeds", "evaluate_every", "checkpoint_every", "keep_checkpoints", "rows", "workers",
    "timeout_s", "device",
)  # fmt: skip
_STATE_FILE = "state.pt"
_FEWEST_STEPS = 2
_BETWEEN_DRAWINGS_S = 0.5

logger = logging.getLogger("flowrl.robot.gating")


class Session:
    """The mutable side of :class:`robot.gating.GateTraining`; leaving its context ends the environments."""

    def __init__(self, job: GateTraining, *, resume: bool) -> None:
        """Check everything that can be checked cheaply, then load the model.

        Args:
            job: The configuration.
            resume: Go on from the newest checkpoint.
        """
        _check_runs_here(job)
        self.job, self.config = job, cast("dict[str, Any]", describe(job))
        self.checkpoints = CheckpointFolder(root=job.folder / "checkpoints", keep=job.keep_checkpoints)
        checkpoint = starting_point(job.folder, self.checkpoints, resume=resume, checkpoint_every=job.checkpoint_every)
        self.model = _frozen(job.model.load(device=chosen_device(job.device)))
        self.gate = _fresh_gate(job, self.model)
        self.learner = Learner.of(job, self.gate)
        self.progress = Progress(model=model_fingerprint(self.model))
        if checkpoint is not None:
            self._load(checkpoint)
        self._saved = None if checkpoint is None else self.progress.update
        self._stop, self._bar, self._drawn = StopRequest(), tqdm(disable=True), 0.0
        self._gated = False
        self.pool = EnvPool(job.env, rows=job.rows, workers=job.workers, timeout_s=job.timeout_s)
        self.collector = Collector(job=job, model=self.model, gate=self.gate, pool=self.pool, heed=self._heed, show=self._show)
        self._log = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pool.close()

    def loop(self) -> GateSummary:
        """Roll out, learn, evaluate, save, until all updates are done."""
        job, progress = self.job, self.progress
        with StopRequest() as self._stop, tqdm(total=job.total_updates, initial=progress.update, unit="update") as self._bar:
            try:
                while progress.update < job.total_updates:
                    self._evaluate_if_due()
                    self._one_update()
                    if progress.update % job.checkpoint_every == 0:
                        self._save()
                self._save()
                self._evaluate_if_due()
            except BaseException as error:
                self._save_last_good_state(error)
                raise
        return self._finish()

    def _one_update(self) -> None:
        """One rollout and what is learned from it; counts as done only when its line is written."""
        start, update = time.perf_counter(), self.progress.update
        collected = self.collector.collect(update)
        middle = time.perf_counter()
        learned = self._learn(collected)
        seconds = {"rollout_s": middle - start, "update_s": time.perf_counter() - middle}
        self.progress.update += 1
        self.progress.seconds += time.perf_counter() - start
        for name, value in collected.counts.items():
            setattr(self.progress, name, getattr(self.progress, name) + value)
        totals = {name: value for name, value in self.progress.state_dict().items() if name not in ("update", "model")}
        self._log.write({"kind": "train", "update": update, **collected.metrics, **learned, **seconds, **totals})
        self._bar.update()
        self._show(f"reward {figure(collected.metrics['reward'], 3)}", now=True)

    def _learn(self, collected: Collected) -> dict[str, Any]:
        """The update, unless no group told anything."""
        experience = collected.experience.informative()
        learned: dict[str, Any] = {"trained_chunks": len(experience)}
        if len(experience):
            if not self._gated:
                logger.info("ratio gate: largest distance from 1 is %.1e", self.learner.check_ratio(experience))
                self._gated = True
            learned |= self.learner.update(experience, self.progress.update)
        return learned | {"log_std": self.gate.spread.tolist()}

    def _evaluate_if_due(self) -> None:
        """Before the first update, every so many on rollouts, and after the last."""
        job, update = self.job, self.progress.update
        played = update - job.warm_up_updates
        due = update in (0, job.total_updates) or (played >= 0 and played % job.evaluate_every == 0)
        if job.evaluation_seeds is None or not due or self._log.has_evaluation(update):
            return
        self._show("evaluation", now=True)
        evaluator = Evaluator(
            folder=job.folder, model=self.model, pool=self.pool, seeds=parse_seeds(job.evaluation_seeds), seed=job.seed, heed=self._heed
        )
        with self.learner.released():
            line = evaluator.run(self.gate, update, fresh=update == 0 and job.start is None)
        self._log.write({"kind": "eval", "update": update, **line, "episodes_before": self.progress.episodes})

    def _heed(self) -> None:
        if self._stop.requested:
            raise Stopped

    def _show(self, text: str, *, now: bool = False) -> None:
        """Behind the bar, now and then."""
        if now or time.monotonic() - self._drawn > _BETWEEN_DRAWINGS_S:
            self._bar.set_postfix_str(text)
            self._drawn = time.monotonic()

    def _save(self) -> None:
        """The checkpoint of the present state; written once."""
        update = self.progress.update
        if self._saved == update:
            return
        with self.checkpoints.staging(update) as staging:
            torch.save({"progress": self.progress.state_dict(), **self.learner.state_dict()}, staging / _STATE_FILE)
            with self.learner.released():
                save_gate(
                    staging / GATES.name,
                    self.gate,
                    self.model,
                    source=self.job.model,
                    training={"config": self.config, "updates": update},
                    fingerprint=self.progress.model,
                )
            (staging / CONFIG_FILE).write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        self._saved = update

    def _save_last_good_state(self, error: BaseException) -> None:
        """After a stop or an error, if there is anything to lose."""
        mends = isinstance(error, Stopped | NonFiniteError) or (isinstance(error, Exception) and not isinstance(error, CheckpointError))
        if mends and (self.progress.update or isinstance(error, Stopped)) and self.learner.is_finite():
            self._save()
            logger.warning("stopped after %d updates; go on with --resume", self.progress.update)

    def _load(self, checkpoint: Path) -> None:
        check_complete(checkpoint)
        refuse_other_config(checkpoint, self.config, _FREE)
        now = self.progress.model
        try:
            state = torch.load(checkpoint / _STATE_FILE, map_location=self.model.device, weights_only=True)
            self.progress.load_state_dict(state["progress"])
            self.learner.load_state_dict(state)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the state in {checkpoint} cannot be restored: {error}; start again in another run_dir") from error
        if self.progress.model != now:
            raise CheckpointError(
                f"{checkpoint} was trained on another world-action model (sha256 {self.progress.model[:12]}… instead of {now[:12]}…); "
                "put that back, or choose another run_dir"
            )

    def _open(self) -> MetricsLog:
        """Create the run folder and its files."""
        self.job.folder.mkdir(parents=True, exist_ok=True)
        (self.job.folder / CONFIG_FILE).write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        return MetricsLog(self.job.folder, keep_before=self.progress.update, keep_evaluation=True)

    def _finish(self) -> GateSummary:
        """Publish the gate, write the report."""
        folder = self.job.folder
        gate = GATES.publish(self.checkpoints.path(self.progress.update), folder)
        record = write_report(folder)
        return GateSummary(
            run_dir=folder,
            updates=self.progress.update,
            checkpoint=gate,
            report=folder / REPORT_FILE,
            evaluation=record.evals[-1] if record.evals else {},
        )


def _check_runs_here(job: GateTraining) -> None:
    if problems := job.env.problems():
        raise ConfigError(f"{job.env.name} cannot run here: " + "; ".join(problems))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("the gate is trained by one process; start it with flowrl train, and spread its environments with workers")
    if job.warm_up is not None:
        job.warm_up.check_split(job.model)
    if job.gate.steps < _FEWEST_STEPS:
        raise ConfigError(f"a gate needs at least 2 denoising steps, got {job.gate.steps}: times after the last step are never read")


def _frozen(model: WorldActionModel) -> WorldActionModel:
    """Nothing of it is trained."""
    for part in model.parts.values():
        part.requires_grad_(requires_grad=False).eval()
    return model


def _fresh_gate(job: GateTraining, model: WorldActionModel) -> Gate:
    layout = model.layout
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        gate = job.gate.build(layout.frames, layout.tokens, layout.channels)
    try:
        return (gate if job.start is None else gate.start_from(job.start)).to(model.device)
    except ValueError as error:
        raise ConfigError(f"start: {error}") from error
