"""One run of the trainer: its set-up, its loop, and what it writes."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from flowrl.errors import CheckpointError, NonFiniteError, RewardError
from flowrl.models.quiet import quiet_libraries
from flowrl.rl import UniformPrompts, check_prompts, part_weights, prepare_reward, with_those_within
from flowrl.train.checkpoint import CheckpointFolder
from flowrl.train.describe import describe
from flowrl.train.ema import WeightAverage
from flowrl.train.evaluation_result import EvaluationResult, evaluation_folder
from flowrl.train.experience import Collected, Experience
from flowrl.train.grids import save_png
from flowrl.train.learner import Learner
from flowrl.train.metrics import MetricsLog
from flowrl.train.parallel import check_reference, start_accelerator
from flowrl.train.prompts import load_prompts
from flowrl.train.resume import CONFIG_FILE, starting_point
from flowrl.train.rollout import Rollout, draw, join
from flowrl.train.scores import complete_groups, refuse_failures, submit
from flowrl.train.signals import Stopped, StopRequest
from flowrl.train.state import Counters, keep_weights_out, load_checkpoint, save_checkpoint
from flowrl.train.summary import train_line
from flowrl.train.threads import hint_at_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from flowrl.flow import Sampler
    from flowrl.train.evaluation import Evaluation
    from flowrl.train.scores import PendingScores
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
        self.accelerator = start_accelerator(trainer)
        self.groups = trainer.check_groups(self.accelerator.num_processes)
        self.prompts = load_prompts(trainer.prompts)
        self.checkpoints = CheckpointFolder(root=trainer.folder / "checkpoints", keep=trainer.keep_checkpoints)
        checkpoint = self._starting_point(resume=resume)
        self._prepare_rewards()
        self.counters = Counters()
        self.prompt_sampler = trainer.prompt_sampler or UniformPrompts(prompts_count=len(self.prompts), seed=trainer.seed)
        self.learner = self._learner()
        if checkpoint is not None:
            load_checkpoint(checkpoint, self.learner, self.config)
        self._saved = None if checkpoint is None else self.counters.update
        self._log: MetricsLog | None = None
        self._gated = False

    def _prepare_rewards(self) -> None:
        """All that can go wrong with rewards before the first picture: servers, weights, prompts that they cannot score."""
        evaluation = self.trainer.evaluation
        scored = [(self.trainer.reward, self.prompts)]
        scored += [] if evaluation is None else [(reward, evaluation.texts) for reward in evaluation.rewards]
        check_prompts(self.trainer.model, [*self.prompts, *([] if evaluation is None else evaluation.texts)])
        for reward, prompts in scored:
            prepare_reward(reward, prompts, self.accelerator.device)

    def loop(self) -> RunSummary:
        """Rollout, reward, advantage, update, record, until all updates are done."""
        self._open()
        last, is_main = self.trainer.updates, self.accelerator.is_main_process
        with StopRequest() as stop, tqdm(total=last, initial=self.counters.update, unit="update", disable=not is_main) as bar:
            try:
                while self.counters.update < last:
                    self._evaluate_if_due()
                    _show(bar, self._one_update(stop))
                    if self.counters.update % self.trainer.checkpoint_every == 0:
                        self._save()
            except BaseException as error:
                if self._can_save_after(error):
                    self._save_last_good_state()
                raise
        checkpoint = self._save()
        self._evaluate_if_due()
        self.accelerator.end_training()
        return RunSummary(run_dir=self.trainer.folder, updates=self.counters.update, checkpoint=checkpoint, is_main=is_main)

    def _one_update(self, stop: StopRequest) -> dict[str, Any]:
        """One update; counts as done only when its line is written."""
        start = time.perf_counter()
        batch = self._collect(stop)
        collected = time.perf_counter()
        metrics = self._learn(batch.experience)
        kept = batch.kept.tolist()
        indices = [index for index, is_kept in zip(batch.indices, kept, strict=True) if is_kept]
        self.prompt_sampler.observe(indices, self._weighted(batch.rewards))
        scores = {name: batch.rewards[..., part] for part, name in enumerate(self.trainer.reward.weights)}
        for part in with_those_within(self.trainer.reward):
            if (observe := getattr(part, "observe", None)) is not None:
                observe(scores)
        seconds = batch.seconds | {"update": time.perf_counter() - collected}
        self._count(batch, time.perf_counter() - start)
        line = train_line(self.counters, self.trainer.reward, batch.rewards, len(indices), metrics, seconds)
        return self._record(line | {"groups_dropped": len(kept) - len(indices)})

    def _collect(self, stop: StopRequest) -> Collected:
        """What to learn from: rollout in parts, rewards of all processes; the rewards of a part may come while the next is drawn."""
        sampler = self.trainer.sampler.for_update(self.counters.update, self.trainer.seed)
        indices = self.prompt_sampler.draw(self.counters.update, self.trainer.prompts_per_update)
        rollouts, pending, waited = [], [], 0.0
        for slots in self.trainer.parts(self.groups):
            self._stop_if(stop)
            rollout = self._rollout(sampler, indices, slots)
            start = time.perf_counter()
            pending.append(submit(self.learner.model, self.trainer.reward, rollout, batch=self.trainer.reward_batch))
            rollouts.append(rollout.without_samples())
            waited += time.perf_counter() - start
        self._stop_if(stop)
        start, rollout = time.perf_counter(), join(rollouts)
        rewards, kept = self._rewards(pending, [self.prompts[index] for index in indices])
        seconds = {"rollout": rollout.seconds, "reward": waited + time.perf_counter() - start}
        self._stop_if(stop)
        rows = kept.repeat_interleave(self.trainer.sampler.group_size)
        experience = self._experience(rollout, sampler, rewards[rows], rows)
        return Collected(
            experience=experience, rewards=rewards[rows], kept=kept, indices=indices, pictures=rewards[..., 0].numel(), seconds=seconds
        )

    def _rollout(self, sampler: Sampler, indices: Sequence[int], part: range) -> Rollout:
        first = self.accelerator.process_index * self.groups
        slots = range(first + part.start, first + part.stop)
        field = self.learner.model.field(self.accelerator.unwrap_model(self.learner.prepared))
        key = (self.trainer.seed, self.counters.update)
        return draw(self.learner.model, field, sampler, [self.prompts[indices[slot]] for slot in slots], slots=slots, key=key)

    def _rewards(self, pending: Sequence[PendingScores], prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Scores of all processes, prompt-major, and which groups have theirs; checked after the gather: all processes stop together."""
        parts = [scores.wait() for scores in pending]
        local = torch.cat([scores for scores, _ in parts])
        rewards = self.accelerator.gather(local.to(self.accelerator.device)).cpu()
        kept = complete_groups(rewards, len(prompts))
        if not kept.all():
            problems = gather_object([problem for _, problems in parts for problem in problems])
            dropping = self.trainer.on_reward_failure == "drop"
            if not dropping or not kept.any():
                refuse_failures(rewards, list(self.trainer.reward.weights), prompts, problems, dropping=dropping)
            reason = problems[0] if problems else "a score is not a number"
            logger.warning("update %d goes on without %d of %d groups: %s", self.counters.update, int((~kept).sum()), len(kept), reason)
        return rewards, kept

    def _experience(self, rollout: Rollout, sampler: Sampler, rewards: Tensor, rows: Tensor) -> Experience:
        """Advantages over the groups that were scored, then this process's rows of them; rows that were not have none and do not count."""
        group_size, trajectory = self.trainer.sampler.group_size, rollout.trajectory
        groups = torch.arange(len(rewards) // group_size).repeat_interleave(group_size)
        scored = self.trainer.advantage(rewards, groups, part_weights(self.trainer.reward))
        advantage = scored.new_zeros(len(rows), *scored.shape[1:])
        advantage[rows] = scored
        mine = slice(first := self.accelerator.process_index * self.groups * group_size, first + self.groups * group_size)
        return Experience(
            trajectory=trajectory,
            condition=rollout.condition,
            dynamics=sampler.dynamics,
            advantage=advantage[mine].to(trajectory.log_prob).expand_as(trajectory.log_prob).contiguous(),
            kept=None if rows.all() else rows[mine].to(trajectory.log_prob.device),
        )

    def _learn(self, experience: Experience) -> dict[str, float]:
        if self.trainer.update.old_log_prob == "recompute":
            experience = experience.with_old_log_prob(self.learner.rescore(experience))
        if not self._gated:
            logger.info("ratio gate: largest distance from 1 is %.1e", self.learner.check_ratio(experience))
            self._gated = True
        return self.learner.update(experience)

    def _weighted(self, rewards: Tensor) -> Tensor:
        return (rewards.mean((1, 2)) * part_weights(self.trainer.reward)).sum(-1).reshape(-1, self.trainer.sampler.group_size)

    def _count(self, batch: Collected, seconds: float) -> None:
        processes, trajectory = self.accelerator.num_processes, batch.experience.trajectory
        self.counters.update += 1
        self.counters.trained_states += len(trajectory.parents) * processes * self.trainer.update.epochs
        self.counters.images += batch.pictures
        self.counters.network_evaluations += trajectory.network_evaluations * processes
        self.counters.seconds += seconds

    def _record(self, line: dict[str, Any]) -> dict[str, Any]:
        if self._log is not None:
            self._log.write(line)
        self.accelerator.log({name: value for name, value in line.items() if isinstance(value, int | float)}, step=line["update"])
        return line

    def _evaluate_if_due(self) -> None:
        """Evaluate the released weights before the first update, every so many, and after the last."""
        update, evaluation = self.counters.update, self.trainer.evaluation
        if evaluation is None or (update % self.trainer.evaluate_every and update != self.trainer.updates) or self._is_evaluated(update):
            return
        result = self._evaluate(evaluation)
        if result is None:
            return
        line: dict[str, Any] = {"kind": "eval", "update": update, **result.line()}
        if self._log is not None:
            result.save(evaluation_folder(self.trainer.folder, update))
            if result.images:
                line["grid"] = f"grids/update_{update:06d}.png"
                save_png(result.grid(f"after {update} updates"), self.trainer.folder / line["grid"])
        self._record(line | {name: getattr(self.counters, name) for name in ("network_evaluations", "trained_states", "images", "seconds")})

    def _evaluate(self, evaluation: Evaluation) -> EvaluationResult | None:
        """Processes share the prompts; a score that is missing stops all of them, or leaves the evaluation out."""
        module, share = self.accelerator.unwrap_model(self.learner.prepared), None
        with self.learner.released_weights():
            try:
                share = evaluation.run(
                    self.learner.model, module=module, rank=self.accelerator.process_index, processes=self.accelerator.num_processes
                )
            except (NonFiniteError, RewardError) as error:
                problem = error
        shares = gather_object([problem if share is None else share])
        for found in shares:
            if isinstance(found, Exception):
                if self.trainer.on_reward_failure == "stop":
                    raise found
                logger.warning("the evaluation after %d updates is left out: %s", self.counters.update, found)
                return None
        return EvaluationResult.merge(shares)

    def _is_evaluated(self, update: int) -> bool:
        written = [self._log is not None and self._log.has_evaluation(update)]
        return bool(broadcast_object_list(written)[0])

    def _save(self) -> Path:
        """The checkpoint of the present state; written once."""
        if self._saved != self.counters.update:
            save_checkpoint(self.checkpoints, self.learner, self.counters.update, self.config)
            self._saved = self.counters.update
        return self.checkpoints.path(self.counters.update)

    def _save_last_good_state(self) -> None:
        """After a stop; optimiser steps that the update under way has already taken are kept, unless they led to non-finite weights."""
        if self._saved == self.counters.update or self.learner.is_finite():
            logger.warning("the last good state is %s; go on with --resume", self._save())
        else:
            logger.warning("the weights are not finite any more and were not saved; the last good state is %s", self.checkpoints.latest())
        self.accelerator.end_training()

    def _can_save_after(self, error: BaseException) -> bool:
        """Whether all processes are here: a fault of one alone, such as a reward that raises, would leave it waiting for the others."""
        if isinstance(error, NonFiniteError | RewardError | Stopped):
            return True
        alone = self.accelerator.num_processes == 1 and isinstance(error, Exception)
        return alone and self.counters.update > 0 and not isinstance(error, CheckpointError)

    def _stop_if(self, stop: StopRequest) -> None:
        flag = torch.tensor([stop.requested], device=self.accelerator.device)
        if bool(self.accelerator.gather(flag).any()):
            raise Stopped

    def _starting_point(self, *, resume: bool) -> Path | None:
        """The checkpoint to go on from; all processes look, and take what the main one found."""
        every = self.trainer.checkpoint_every
        found = starting_point(self.trainer.folder, self.checkpoints, resume=resume, checkpoint_every=every)
        return cast("Path | None", broadcast_object_list([found])[0])

    def _learner(self) -> Learner:
        """Load the model and prepare everything that moves."""
        with quiet_libraries():
            model = self.trainer.model.load(self.accelerator.device)
        hint_at_threads(model.module, self.accelerator.device)
        model.prepare(self._texts())
        check_reference(self.accelerator, model.module, self.trainer.objective)
        optimizer, schedule = self.trainer.optimizer.build(
            model.trainable_parameters(), self.trainer.updates * self.trainer.update.optimizer_steps
        )
        keep_weights_out(self.accelerator)
        prepared, optimizer = self.accelerator.prepare(model.module, optimizer)
        parameters = model.trainable_parameters()  # under FSDP 2 other objects than before
        average = None if self.trainer.ema_decay is None else WeightAverage(parameters, self.trainer.ema_decay)
        scales = [part for part in with_those_within(self.trainer.reward) if getattr(part, "state_dict", dict)()]
        kept = [self.counters, schedule, self.prompt_sampler, self.trainer.objective, average, *scales]
        self.accelerator.register_for_checkpointing(*[item for item in kept if item is not None])
        return Learner(
            accelerator=self.accelerator,
            model=model,
            prepared=prepared,
            parameters=parameters,
            objective=self.trainer.objective,
            optimizer=optimizer,
            schedule=schedule,
            settings=self.trainer.update,
            average=average,
        )

    def _texts(self) -> list[str]:
        """All that this process's model will be asked to encode, each text once."""
        rank, count = self.accelerator.process_index, self.trainer.prompts_per_update
        slots = range(rank * self.groups, (rank + 1) * self.groups)
        upcoming = getattr(self.prompt_sampler, "upcoming", None)
        indices = range(len(self.prompts)) if upcoming is None else upcoming(self.trainer.updates, count, slots)
        evaluation = self.trainer.evaluation
        evaluated = [] if evaluation is None else evaluation.texts_of(rank, self.accelerator.num_processes)
        return list(dict.fromkeys([*(self.prompts[index] for index in indices), *evaluated]))

    def _open(self) -> None:
        """Create the run folder and its files."""
        self.accelerator.init_trackers("flowrl", init_kwargs={"wandb": {"dir": str(self.trainer.folder), "config": self.config}})
        if self.accelerator.is_main_process:
            self.trainer.folder.mkdir(parents=True, exist_ok=True)
            (self.trainer.folder / CONFIG_FILE).write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
            self._log = MetricsLog(self.trainer.folder, keep_before=self.counters.update, keep_evaluation=True)
        self.accelerator.wait_for_everyone()


def _show(bar: tqdm, line: dict[str, Any]) -> None:
    bar.set_postfix(reward=f"{line['reward']:.3f}", ratio=f"1±{line.get('ratio_max_dev', math.nan):.0e}", refresh=False)
    bar.update()
