"""One training run on demonstrations: its set-up, its loop, and what it writes."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from flowrl.errors import CheckpointError, NonFiniteError
from flowrl.train.checkpoint import CheckpointFolder, check_complete
from flowrl.train.describe import describe
from flowrl.train.ema import WeightAverage
from flowrl.train.metrics import MetricsLog, read_metrics
from flowrl.train.resume import CONFIG_FILE, refuse_other_config, starting_point
from flowrl.train.signals import Stopped, StopRequest
from flowrl.train.threads import hint_at_threads
from robot.learning.material import Batches
from robot.learning.processes import start_accelerator
from robot.learning.progress import Progress, TrainingSummary

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor, nn

    from robot.learning.lesson import Training

__all__ = ["Session"]

# What may change between a run and its resumption; more steps stretch the rest of a schedule. The data are known by their fingerprint.
_FREE = ("run_dir", "demonstrations", "steps", "validate_every", "checkpoint_every", "keep_checkpoints", "log_every", "trackers", "name")

logger = logging.getLogger("flowrl.robot.learning")


class Session:
    """The mutable side of a :class:`robot.learning.lesson.Training`: one loop for behaviour cloning and all jobs like it."""

    def __init__(self, job: Training, *, resume: bool) -> None:
        """Check everything that can be checked cheaply, then load the demonstrations.

        Args:
            job: The configuration.
            resume: Go on from the newest checkpoint.
        """
        self.job, self.config = job, cast("dict[str, Any]", describe(job))
        self.accelerator = start_accelerator(job)
        self.share = job.share(self.accelerator.num_processes)
        self.checkpoints = CheckpointFolder(root=job.folder / "checkpoints", keep=job.keep_checkpoints)
        found = starting_point(job.folder, self.checkpoints, resume=resume, checkpoint_every=job.checkpoint_every)
        checkpoint = cast("Path | None", broadcast_object_list([found])[0])
        self.lesson = job.lesson()
        self._prepare()
        if checkpoint is not None:
            self._load(checkpoint)
        self._saved = None if checkpoint is None else self.progress.step
        self._log: MetricsLog | None = None

    def loop(self) -> TrainingSummary:
        """Step, validate, save, until all steps are done."""
        self._open()
        job, progress, is_main = self.job, self.progress, self.accelerator.is_main_process
        with StopRequest() as stop, tqdm(total=job.steps, initial=progress.step, unit="step", disable=not is_main) as bar:
            while progress.step < job.steps:
                self._stop_if(stop)
                loss = self._step()
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()
                if progress.step % job.validate_every == 0 and progress.step < job.steps:
                    self._validate()
                if progress.step % job.checkpoint_every == 0:
                    self._save()
        self._save()
        self._validate()
        summary = self._finish()
        self.accelerator.end_training()
        return summary

    def _prepare(self) -> None:
        """Build the networks and everything that moves them."""
        job, accelerator = self.job, self.accelerator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            module = self.lesson.begin(accelerator.device).train()
        hint_at_threads(module, accelerator.device)
        self.parameters = list(module.parameters())
        optimizer, self.schedule = job.optimizer.build(self.parameters, job.steps)
        self.prepared, self.optimizer = accelerator.prepare(module, optimizer)
        self.average = None if job.ema_decay is None else WeightAverage(self.parameters, job.ema_decay)
        self.progress = Progress(data=self.lesson.fingerprint)
        kept = [self.progress, self.schedule, self.average]
        accelerator.register_for_checkpointing(*[item for item in kept if item is not None])
        self.batches = Batches(self.lesson.examples, job.batch_size, job.seed)

    @property
    def module(self) -> nn.Module:
        """The networks, without accelerate's wrapping."""
        return cast("nn.Module", self.accelerator.unwrap_model(self.prepared))

    def _step(self) -> float:
        """One optimiser step; returns the loss over all processes."""
        start, step, accelerator = time.perf_counter(), self.progress.step, self.accelerator
        loss = self._loss(step)
        shared = float(accelerator.gather(loss.detach()[None]).mean())
        if not shared < float("inf"):
            raise NonFiniteError(f"the loss of step {step} is {shared}; use a smaller learning rate{self._where_to_go_on()}")
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.parameters, self.job.max_grad_norm)
        if accelerator.scaler is None and not bool(torch.as_tensor(norm).isfinite()):
            raise NonFiniteError(f"the gradient of step {step} is not finite; use a smaller learning rate{self._where_to_go_on()}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        rate = float(self.schedule.get_last_lr()[0])
        if not accelerator.optimizer_step_was_skipped:  # float16: the scaler skips steps whose gradients overflow
            self.schedule.step()
            if self.average is not None:
                self.average.step()
        self.progress.step += 1
        self.progress.seconds += time.perf_counter() - start
        self.progress.recent.append(shared)
        self._record_if_due(rate, float(norm))
        return shared

    def _loss(self, step: int) -> Tensor:
        """The loss of this process's part of a batch."""
        first = self.accelerator.process_index * self.share
        mine = slice(first, first + self.share)
        return self.lesson.loss(self.prepared, self.batches.rows(step)[mine], mine, step)

    def _record_if_due(self, rate: float, norm: float) -> None:
        progress = self.progress
        if progress.step % self.job.log_every and progress.step != self.job.steps:
            return
        mean = sum(progress.recent) / len(progress.recent)
        progress.recent.clear()
        epoch = progress.step * self.job.batch_size / self.lesson.examples
        line = {"loss": mean, "lr": rate, "grad_norm": norm, "epoch": epoch, "seconds": progress.seconds}
        self._record({"kind": "train", "update": progress.step - 1, **line})

    def _record(self, line: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(line)
        self.accelerator.log({name: value for name, value in line.items() if isinstance(value, int | float)}, step=line["update"])

    def _validate(self) -> None:
        """Measures on held-out episodes, with the weights that are saved; on the main process."""
        step = self.progress.step
        if self._log is not None and self.lesson.facts["held_out"] and not self._log.has_evaluation(step):
            with self._released():
                measured = self.lesson.validate(self.module)
            self._record({"kind": "eval", "update": step, **{f"eval/{name}": value for name, value in measured.items()}})
        self.accelerator.wait_for_everyone()

    def _released(self) -> AbstractContextManager[object]:
        from contextlib import nullcontext

        return nullcontext() if self.average is None else self.average.applied()

    def _save(self) -> None:
        """The checkpoint of the present state; written once."""
        step = self.progress.step
        if self._saved == step:
            return
        is_main = self.accelerator.is_main_process
        with self.checkpoints.staging(step, is_main=is_main) as staging:
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(staging / "state"))
            if is_main:
                self._save_model(staging / self.job.kind.name)
                (staging / CONFIG_FILE).write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
            self.accelerator.wait_for_everyone()
        self.accelerator.wait_for_everyone()
        self._saved = step

    def _save_model(self, path: Path) -> None:
        training = {"config": self.config, "data": self.lesson.facts, "steps": self.progress.step}
        with self._released():
            self.lesson.save(path, self.module, training)

    def _load(self, checkpoint: Path) -> None:
        check_complete(checkpoint)
        refuse_other_config(checkpoint, self.config, _FREE)
        data = self.progress.data
        try:
            self.accelerator.load_state(str(checkpoint / "state"))
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the state in {checkpoint} cannot be restored: {error}; start again in another run_dir") from error
        if self.progress.data != data:
            raise CheckpointError(
                f"{checkpoint} was trained on other {self.lesson.source} (sha256 {self.progress.data[:12]}… instead of {data[:12]}…); "
                "put them back, or choose another run_dir"
            )

    def _open(self) -> None:
        """Create the run folder and its files."""
        self.accelerator.init_trackers("flowrl", init_kwargs={"wandb": {"dir": str(self.job.folder), "config": self.config}})
        if self.accelerator.is_main_process:
            self.job.folder.mkdir(parents=True, exist_ok=True)
            (self.job.folder / CONFIG_FILE).write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
            self._log = MetricsLog(self.job.folder, keep_before=self.progress.step, keep_evaluation=True)
            if not self.lesson.facts["held_out"]:
                logger.info("no episodes are held out: there will be no validation")
        self.accelerator.wait_for_everyone()

    def _finish(self) -> TrainingSummary:
        """Publish the model file, draw the curve, write the report."""
        from robot.learning.report import REPORT_FILE, write_report

        folder, kind, is_main = self.job.folder, self.job.kind, self.accelerator.is_main_process
        if is_main:
            kind.publish(self.checkpoints.path(self.progress.step), folder)
            write_report(folder, type(self.job))
        self.accelerator.wait_for_everyone()
        return TrainingSummary(
            run_dir=folder,
            updates=self.progress.step,
            checkpoint=folder / kind.name,
            noun=kind.noun,
            is_main=is_main,
            report=folder / REPORT_FILE,
            measured=self._measured(),
        )

    def _measured(self) -> dict[str, float]:
        lines = [] if self._log is None else [line for line in read_metrics(self._log.path) if line["kind"] == "eval"]
        return {name: value for name, value in (lines[-1] if lines else {}).items() if name.startswith("eval/")}

    def _stop_if(self, stop: StopRequest) -> None:
        """Stop all processes between two steps, with a checkpoint."""
        flag = torch.tensor([stop.requested], device=self.accelerator.device)
        if bool(self.accelerator.gather(flag).any()):
            self._save()
            logger.warning("stopped after %d steps; go on with --resume", self.progress.step)
            self.accelerator.end_training()
            raise Stopped

    def _where_to_go_on(self) -> str:
        latest = self.checkpoints.latest()
        return "" if latest is None else f"; the last good state is {latest}"
