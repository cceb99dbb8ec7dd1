"""One run of the trainer: its set-up, its loop, and what it writes."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from tqdm.auto import tqdm

from flowrl.errors import CheckpointError, ConfigError, NonFiniteError
from flowrl.rl import UniformPrompts
from flowrl.train.checkpoint import CheckpointFolder
from flowrl.train.describe import describe
from flowrl.train.ema import WeightAverage
from flowrl.train.evaluation_result import EvaluationResult
from flowrl.train.experience import Experience
from flowrl.train.grids import save_png
from flowrl.train.learner import Learner
from flowrl.train.metrics import MetricsLog
from flowrl.train.prompts import load_prompts
from flowrl.train.rollout import Rollout, draw, require_finite, score
from flowrl.train.signals import StopRequest
from flowrl.train.state import CONFIG_FILE, Counters, keep_base_weights_out, load_checkpoint, save_checkpoint
from flowrl.train.summary import train_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from flowrl.flow import Sampler
    from flowrl.train.trainer import RLTrainer

__all__ = ["Run", "RunSummary"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a finished run leaves.

    Attributes:
        run_dir: The run folder.
        updates: Updates done.
        checkpoint: The last checkpoint.
        is_main: Whether this process is the one that reports.
    """

    run_dir: Path
    updates: int
    checkpoint: Path
    is_main: bool


class Run:
    """The mutable side of :class:`flowrl.train.RLTrainer`."""

    def __init__(self, trainer: RLTrainer, *, resume: bool) -> None:
        """Check everything that can be checked cheaply, then load the model.

        Args:
            trainer: The configuration.
            resume: Go on from the newest checkpoint.
        """
        self.trainer = trainer
        self.config: dict[str, Any] = describe(trainer)
        kwargs = DistributedDataParallelKwargs(find_unused_parameters=trainer.find_unused_parameters)
        self.accelerator = Accelerator(
            mixed_precision=trainer.mixed_precision, log_with=list(trainer.trackers) or None, project_dir=trainer.run_dir, kwargs_handlers=[kwargs]
        )
        self.groups = trainer.check_groups(self.accelerator.num_processes)
        self.prompts = load_prompts(trainer.prompts)
        self.checkpoints = CheckpointFolder(root=trainer.folder / "checkpoints", keep=trainer.keep_checkpoints)
        checkpoint = self._starting_point(resume=resume)
        self.counters = Counters()
        self.prompt_sampler = trainer.prompt_sampler or UniformPrompts(prompts_count=len(self.prompts), seed=trainer.seed)
        self.learner = self._learner()
        if checkpoint is not None:
            load_checkpoint(checkpoint, self.learner, self.config)
        self._resumed_from = self.counters.update
        self.log: MetricsLog | None = None
        self.gated = False

    def loop(self) -> RunSummary:
        """Rollout, reward, advantage, update, record, until all updates are done."""
        self._open()
        last = self.trainer.updates
        with StopRequest() as stop, tqdm(total=last, initial=self.counters.update, unit="update", disable=not self.accelerator.is_main_process) as bar:
            try:
                while self.counters.update < last:
                    self._evaluate_if_due()
                    line = self._one_update(stop)
                    bar.set_postfix(reward=f"{line['reward']:.3f}", ratio=f"1±{line['ratio_max_dev']:.0e}")
                    bar.update()
                    if self.counters.update % self.trainer.checkpoint_every == 0 and self.counters.update < last:
                        self._save()
            except (NonFiniteError, KeyboardInterrupt):
                self._save_last_good_state()
                raise
        checkpoint = self._save()
        self._evaluate_if_due()
        self.accelerator.end_training()
        return RunSummary(
            run_dir=self.trainer.folder, updates=self.counters.update, checkpoint=checkpoint, is_main=self.accelerator.is_main_process
        )

    def _one_update(self, stop: StopRequest) -> dict[str, float]:
        """One update; counts as done only when its line is written."""
        start = time.perf_counter()
        sampler = self.trainer.sampler.for_update(self.counters.update, self.trainer.seed)
        rollout, indices = self._rollout(sampler)
        self._stop_if(stop)
        scoring = time.perf_counter()
        rewards = self._rewards(rollout, indices)
        scored = time.perf_counter()
        self._stop_if(stop)
        experience = self._experience(rollout, sampler, rewards)
        metrics = self._update(experience)
        self.prompt_sampler.observe(indices, self._weighted(rewards))
        seconds = {"rollout": rollout.seconds, "reward": scored - scoring, "update": time.perf_counter() - scored}
        self.counters.update += 1
        self.counters.trained_states += len(rollout.trajectory.parents) * self.accelerator.num_processes * self.trainer.update.epochs
        self.counters.images += rewards[..., 0].numel()
        self.counters.network_evaluations += rollout.trajectory.network_evaluations * self.accelerator.num_processes
        self.counters.seconds += time.perf_counter() - start
        return self._record(train_line(self.counters, self.trainer.reward, rewards, experience, metrics, seconds))

    def _rollout(self, sampler: Sampler) -> tuple[Rollout, list[int]]:
        indices = self.prompt_sampler.draw(self.counters.update, self.trainer.prompts_per_update)
        first = self.accelerator.process_index * self.groups
        slots = range(first, first + self.groups)
        field = self.learner.model.field(self.accelerator.unwrap_model(self.learner.prepared))
        key = (self.trainer.seed, self.counters.update)
        return draw(self.learner.model, field, sampler, [self.prompts[indices[slot]] for slot in slots], slots=slots, key=key), indices

    def _rewards(self, rollout: Rollout, indices: Sequence[int]) -> Tensor:
        """Scores of all processes, prompt-major; they are checked after the gather, so that all processes stop together."""
        local = score(self.learner.model, self.trainer.reward, rollout, batch=self.trainer.reward_batch)
        rewards = self.accelerator.gather(local.to(self.accelerator.device)).cpu()
        require_finite(rewards, list(self.trainer.reward.weights), [self.prompts[index] for index in indices])
        return rewards

    def _experience(self, rollout: Rollout, sampler: Sampler, rewards: Tensor) -> Experience:
        """Advantages over the whole update, then this process's rows of them."""
        group_size = self.trainer.sampler.group_size
        groups = torch.arange(self.trainer.prompts_per_update).repeat_interleave(group_size)
        weights = torch.tensor([float(weight) for weight in self.trainer.reward.weights.values()])
        advantage = self.trainer.advantage(rewards, groups, weights)
        rows = slice(self.accelerator.process_index * self.groups * group_size, (self.accelerator.process_index + 1) * self.groups * group_size)
        steps = rollout.trajectory.log_prob
        return Experience(
            trajectory=rollout.trajectory,
            condition=rollout.condition,
            dynamics=sampler.dynamics,
            advantage=advantage[rows].to(steps.device, torch.float32).expand_as(steps).contiguous(),
        )

    def _update(self, experience: Experience) -> dict[str, float]:
        if self.trainer.update.old_log_prob == "recompute":
            experience = experience.with_old_log_prob(self.learner.rescore(experience))
        if not self.gated:
            logger.info("ratio gate: largest distance from 1 is %.1e", self.learner.check_ratio(experience))
            self.gated = True
        return self.learner.update(experience)

    def _weighted(self, rewards: Tensor) -> Tensor:
        weights = torch.tensor([float(weight) for weight in self.trainer.reward.weights.values()])
        return (rewards.mean((1, 2)) * weights).sum(-1).reshape(self.trainer.prompts_per_update, -1)

    def _record(self, line: dict[str, Any]) -> dict[str, Any]:
        if self.log is not None:
            self.log.write(line)
        self.accelerator.log({name: value for name, value in line.items() if isinstance(value, int | float)}, step=line["update"])
        return line

    def _evaluate_if_due(self) -> None:
        """Evaluate the released weights before the first update, every so many, and after the last; processes share the prompts."""
        update, evaluation = self.counters.update, self.trainer.evaluation
        if evaluation is None or (update % self.trainer.evaluate_every and update != self.trainer.updates) or self._is_evaluated(update):
            return
        module = self.accelerator.unwrap_model(self.learner.prepared)
        with self.learner.released_weights():
            share = evaluation.run(
                self.learner.model, module=module, rank=self.accelerator.process_index, processes=self.accelerator.num_processes
            )
        result = EvaluationResult.merge(gather_object([share]))
        line = {"kind": "eval", "update": update, **result.line()}
        if self.log is not None:
            name = f"update_{update:06d}"
            result.save(self.trainer.folder / "evaluations" / name)
            if result.images:
                save_png(result.grid(f"after {update} updates"), self.trainer.folder / "grids" / f"{name}.png")
                line["grid"] = f"grids/{name}.png"
        self._record(line | {name: getattr(self.counters, name) for name in ("network_evaluations", "trained_states", "images", "seconds")})

    def _is_evaluated(self, update: int) -> bool:
        written = [self.log is not None and self.log.has_evaluation(update)]
        return bool(broadcast_object_list(written)[0])

    def _save(self) -> Path:
        return save_checkpoint(self.checkpoints, self.learner, self.counters.update, self.config)

    def _save_last_good_state(self) -> None:
        """After a stop in mid-update; optimiser steps already taken in this update would make the state another one."""
        if self.learner.steps:
            logger.warning("stopped between the optimiser steps of one update; the last checkpoint is %s", self.checkpoints.latest())
        else:
            logger.warning("saved the last good state as %s; go on with --resume", self._save())

    def _stop_if(self, stop: StopRequest) -> None:
        flag = torch.tensor([stop.requested], device=self.accelerator.device)
        if bool(self.accelerator.gather(flag).any()):
            raise KeyboardInterrupt

    def _starting_point(self, *, resume: bool) -> Path | None:
        """The checkpoint to go on from; the main process looks, all agree."""
        found: list[Path | None] = [self.checkpoints.latest() if resume and self.accelerator.is_main_process else None]
        started = self.trainer.folder.exists() and any(self.trainer.folder.glob("metrics.jsonl"))
        if started and not resume:
            raise ConfigError(f"{self.trainer.folder} already holds a run; go on with --resume, or choose another run_dir")
        return broadcast_object_list(found)[0]

    def _learner(self) -> Learner:
        """Load the model and prepare everything that moves; adapters' initial weights depend on the seed alone."""
        with torch.random.fork_rng():
            torch.manual_seed(self.trainer.seed)
            model = self.trainer.model.load(self.accelerator.device)
        keep_base_weights_out(self.accelerator, model)
        parameters = [p for p in model.module.parameters() if p.requires_grad]
        optimizer, schedule = self.trainer.optimizer.build(parameters, self.trainer.updates * self.trainer.update.optimizer_steps)
        prepared, optimizer = self.accelerator.prepare(model.module, optimizer)
        average = None if self.trainer.ema_decay is None else WeightAverage(parameters, self.trainer.ema_decay)
        kept = [self.counters, schedule, self.prompt_sampler, self.trainer.objective, average]
        self.accelerator.register_for_checkpointing(*[item for item in kept if item is not None])
        return Learner(
            accelerator=self.accelerator, model=model, prepared=prepared, parameters=parameters, objective=self.trainer.objective,
            optimizer=optimizer, schedule=schedule, settings=self.trainer.update, average=average,
        )

    def _open(self) -> None:
        """Create the run folder and its files."""
        self.accelerator.init_trackers("tensorboard", init_kwargs={"wandb": {"dir": str(self.trainer.folder), "config": self.config}})
        if self.accelerator.is_main_process:
            self.trainer.folder.mkdir(parents=True, exist_ok=True)
            (self.trainer.folder / CONFIG_FILE).write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
            self.log = MetricsLog(self.trainer.folder, keep_before=self.counters.update, keep_evaluation=True)
        self.accelerator.wait_for_everyone()
