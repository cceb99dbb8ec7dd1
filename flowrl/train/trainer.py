"""The trainer: rollout, reward, advantage, update, record; and what makes a run safe to leave alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flowrl.errors import ConfigError
from flowrl.flow import ODE, Sampler
from flowrl.models import ModelSource
from flowrl.rl import AdvantageEstimator, Objective, PPOClip, PromptSampler, Reward
from flowrl.train.evaluation import Evaluation
from flowrl.train.optimizer import AdamW
from flowrl.train.resume import say_if_finished
from flowrl.train.settings import UpdateSettings

if TYPE_CHECKING:
    from flowrl.train.run import RunSummary

__all__ = ["RLTrainer"]


@dataclass(frozen=True, kw_only=True)
class RLTrainer:
    """RL fine-tuning of a text-to-image flow model; the components say which method.

    One update draws ``prompts_per_update`` prompts, rolls out a group for each, scores the pictures, compares them within
    groups and takes the optimiser steps of ``update``. Every process handles whole groups.

    Attributes:
        run_dir: Where everything is written.
        model: The pipeline and how it is trained.
        sampler: How trajectories are drawn; its dynamics score them again in the update.
        reward: What is good.
        prompts: A UTF-8 text file with one prompt a line, or the name of a bundled one (``assets/prompts/…``).
        updates: Rollouts in the whole run.
        prompts_per_update: Groups per rollout, over all processes.
        advantage: Rewards to advantages.
        optimizer: Optimiser and schedule.
        objective: Log-ratios and advantages to a loss.
        update: How a rollout is learned from.
        prompt_sampler: Which prompts come next; uniform without replacement where None.
        evaluation: Held-out prompts, noise and rewards; None turns evaluation and sample grids off.
        evaluate_every: Updates between evaluations; the first and the last state are always evaluated.
        checkpoint_every: Updates between checkpoints; the last state is always saved.
        keep_checkpoints: How many to keep.
        reward_batch: Pictures decoded and scored at a time, per process.
        rollout_parts: Into how many parts a process cuts its prompts; a reward on a server scores one while the next is drawn.
        on_reward_failure: ``stop`` ends the run, with a checkpoint, where a score is missing or no number; ``drop`` goes on without the
            groups concerned, counts them in ``groups_dropped`` and only stops if none is left; an evaluation with such a score is left
            out, with a warning.
        ema_decay: Decay of the weight average that is then evaluated and released; None for none.
        mixed_precision: Autocast of the trained network; ``None`` leaves it to accelerate's own config.
        find_unused_parameters: For DDP, where a model does not use all of its trained parameters.
        trackers: accelerate trackers beside ``metrics.jsonl``: ``tensorboard``, ``wandb`` (extra).
        seed: Of prompts, noise and adapters' initial weights.

    Raises:
        ConfigError: If a count is below 1, the average's decay lies outside (0, 1) or the sampler draws without noise.
    """

    run_dir: str
    model: ModelSource
    sampler: Sampler
    reward: Reward
    prompts: str
    updates: int
    prompts_per_update: int
    advantage: AdvantageEstimator
    optimizer: AdamW
    objective: Objective = field(default_factory=PPOClip)
    update: UpdateSettings = field(default_factory=UpdateSettings)
    prompt_sampler: PromptSampler | None = None
    evaluation: Evaluation | None = None
    evaluate_every: int = 10
    checkpoint_every: int = 10
    keep_checkpoints: int = 2
    reward_batch: int = 64
    rollout_parts: int = 1
    on_reward_failure: Literal["stop", "drop"] = "stop"
    ema_decay: float | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    find_unused_parameters: bool = False
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "updates",
            "prompts_per_update",
            "evaluate_every",
            "checkpoint_every",
            "keep_checkpoints",
            "reward_batch",
            "rollout_parts",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie inside (0, 1), got {self.ema_decay}; null trains without an average")
        if self.on_reward_failure not in ("stop", "drop"):
            raise ConfigError(f"on_reward_failure must be 'stop' or 'drop', got {self.on_reward_failure!r}")
        if isinstance(self.sampler.dynamics, ODE):
            raise ConfigError(
                f"{type(self.sampler).__name__} draws without noise, which leaves no log-probability to train; "
                "use a sampler with stochastic steps, such as samplers.SDESampler"
            )

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_dir)

    def check_groups(self, processes: int) -> int:
        """Groups per process.

        Raises:
            ConfigError: If whole groups cannot be shared out evenly; groups are never split, their members are compared with each other.
        """
        if self.prompts_per_update % processes:
            below = self.prompts_per_update // processes * processes
            fitting = " or ".join(str(n) for n in (below, below + processes) if n)
            raise ConfigError(
                f"prompts_per_update = {self.prompts_per_update} groups of {self.sampler.group_size} cannot be shared evenly by "
                f"{processes} processes; set prompts_per_update={fitting}, or start another number of processes"
            )
        return self.prompts_per_update // processes

    def parts(self, groups: int) -> list[range]:
        """Which of a process's groups are drawn together: ``rollout_parts`` runs of equal length, or as equal as can be."""
        count = min(self.rollout_parts, groups)
        ends = [groups * part // count for part in range(count + 1)]
        return [range(first, last) for first, last in pairwise(ends)]

    def run(self, *, resume: bool = False) -> RunSummary:
        """Train.

        Args:
            resume: Go on from the newest complete checkpoint of ``run_dir``; starts afresh where there is none.

        Raises:
            ConfigError: If the group arithmetic does not fit, or ``run_dir`` already holds a run and ``resume`` is False.
            CheckpointError: If the checkpoint is damaged or of another configuration.
            KeyboardInterrupt: After Ctrl-C or SIGTERM, once a checkpoint is written.
        """
        from flowrl.train.run import Run

        if resume:
            say_if_finished(self.folder, self.updates)
        return Run(self, resume=resume).loop()
