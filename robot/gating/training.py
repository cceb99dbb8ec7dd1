"""Training of a noise gate by task reward, as a config says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flowrl.errors import ConfigError
from flowrl.rl import AdvantageEstimator, GroupAdvantage, Objective, PPOClip
from flowrl.rl.objectives import needs_reference
from flowrl.train import AdamW
from robot.envs.base import EnvSource
from robot.evaluation.seeds import check_disjoint, parse_seeds
from robot.gating.gate import GateConfig
from robot.gating.noise import Hold, check_hold
from robot.gating.proxy import ActionErrorWarmUp
from robot.gating.rewards import EpisodeReward, OutcomeReward
from robot.learning.blocks import require_positive

if TYPE_CHECKING:
    from robot.gating.summary import GateSummary
    from robot.world_action import WorldActionModel

__all__ = ["GateTraining", "WorldActionSource"]

_SMALLEST_GROUP = 2


class WorldActionSource(Protocol):
    """A world-action model as a config describes it, such as :class:`robot.world.WorldActionFile`."""

    def load(self, device: str = "cpu") -> WorldActionModel:
        """The model, ready to act."""
        ...


@dataclass(frozen=True, kw_only=True)
class GateTraining:
    """Learn a schedule of noise per predicted latent from rollouts, while the world-action model stays as it is.

    In each update ``groups`` episodes of the environment are rolled out ``group_size`` times each, from the same initial state and the same
    base noise; only what the gate tries differs. The members' rewards, compared within the group, say which decisions to repeat (NoiseGate,
    arXiv:2605.07794; GRPO, arXiv:2402.03300). A group whose members fare alike teaches nothing.

    A success at the end of some hundred decisions says little about each. What makes the signal stand out is a line each:
    ``hold: episode`` (what is tried is kept for the episode), ``antithetic: true`` (every attempt beside its opposite), a ``reward`` that
    grades failures, ``start`` (begin at known constants), larger groups, and ``warm_up`` (first learn to imitate held-out actions).

    Attributes:
        run_dir: Where everything is written: ``gate.safetensors``, checkpoints, ``metrics.jsonl``, schedules and a report.
        model: The world-action model; it is frozen.
        env: Where it acts.
        gate: What is trained: a network that reads the denoising state, or constants.
        seeds: Of the training episodes, ``A:B`` or several such ranges.
        groups: Initial states per update.
        group_size: Rollouts of each.
        updates: Rollouts, each followed by optimiser steps; not counting those of the warm-up.
        epochs: Passes over each rollout.
        minibatches: Optimiser steps per pass.
        micro_batch: Chunks per forward and backward pass of the gate.
        objective: The loss; ratios are of single decisions, one latent at one step.
        advantage: From the rewards of a group.
        reward: Of an episode.
        hold: How long what is tried is kept: for a ``step``, a ``chunk``, or the whole ``episode`` (gSDE, arXiv:2005.05719, Sec. 3).
        antithetic: Whether member 2i + 1 of a group tries the opposite of member 2i.
        correlation: Between what is tried for the latents of a step, in [0, 1): near 1 they are moved together, which searches fewer
            directions and each of them harder. Each decision is still scored on its own, so that the gradient is the joint one times the
            correlation matrix: it still ascends.
        entropy_weight: Of the entropy of the decisions, added to the objective.
        start: Multipliers to begin at, one per latent; None begins at the shared schedule.
        warm_up: Updates on held-out demonstrations before any rollout; None for none.
        optimizer: With its learning-rate schedule.
        max_grad_norm: Gradients are scaled down to this norm.
        ema_decay: Of the weight average, which is then what is evaluated and saved; None for none.
        ratio_tolerance: How far the recomputed ratio may be from 1 before the first update.
        evaluation_seeds: Of the evaluation, other than ``seeds``; None for none.
        evaluate_every: Updates between evaluations; the last gate is always evaluated. The shared schedule is evaluated once.
        checkpoint_every: Updates between checkpoints; the last state is always saved.
        keep_checkpoints: How many to keep.
        rows: Environments side by side, and the largest batch of the model.
        workers: Processes that hold them; 0 keeps them in this one.
        timeout_s: How long a step of the environment may take before it counts as hung.
        device: Where model and gate live; None takes a GPU if there is one.
        seed: Of the gate's first weights, the order of the episodes, the base noise and what is tried.

    Raises:
        ConfigError: If a number is out of range, groups cannot be paired or filled, or training and evaluation share seeds.
    """

    run_dir: str
    model: WorldActionSource
    env: EnvSource
    gate: GateConfig
    seeds: str = "0:10000"
    groups: int = 8
    group_size: int = 8
    updates: int = 50
    epochs: int = 4
    minibatches: int = 1
    micro_batch: int = 1024
    objective: Objective = field(default_factory=lambda: PPOClip(clip=0.2))
    advantage: AdvantageEstimator = field(default_factory=GroupAdvantage)
    reward: EpisodeReward = field(default_factory=OutcomeReward)
    hold: Hold = "step"
    antithetic: bool = False
    correlation: float = 0.0
    entropy_weight: float = 0.0
    start: tuple[float, ...] | None = None
    warm_up: ActionErrorWarmUp | None = None
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=5.0e-4, weight_decay=0.0))
    max_grad_norm: float = 1.0
    ema_decay: float | None = None
    ratio_tolerance: float = 1.0e-3
    evaluation_seeds: str | None = "100000:100100"
    evaluate_every: int = 25
    checkpoint_every: int = 5
    keep_checkpoints: int = 2
    rows: int = 32
    workers: int = 0
    timeout_s: float = 60.0
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (
            "groups",
            "updates",
            "epochs",
            "minibatches",
            "micro_batch",
            "evaluate_every",
            "checkpoint_every",
            "keep_checkpoints",
            "rows",
        )
        try:
            require_positive(self, *counts)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        check_hold(self.hold)
        self._check_groups()
        self._check_numbers()
        if needs_reference(self.objective):
            raise ConfigError("the gate is trained without a reference gate; set objective.kl_weight to 0")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_dir)

    @property
    def total_updates(self) -> int:
        """Those of the warm-up and those on rollouts."""
        return self.warm_up_updates + self.updates

    @property
    def warm_up_updates(self) -> int:
        """On demonstrations."""
        return 0 if self.warm_up is None else self.warm_up.updates

    def run(self, *, resume: bool = False) -> GateSummary:
        """Train.

        Args:
            resume: Go on from the newest complete checkpoint of ``run_dir``; starts afresh where there is none.

        Raises:
            ConfigError: If the environment cannot run here, the gate does not fit the model, or ``run_dir`` holds a run that is not to be
                resumed.
            CheckpointError: If the checkpoint is damaged, or of another configuration or model.
            NonFiniteError: If a loss or gradient is not finite.
            KeyboardInterrupt: After Ctrl-C or SIGTERM, once a checkpoint is written.
        """
        from robot.gating.session import Session

        with Session(self, resume=resume) as session:
            return session.loop()

    def _check_groups(self) -> None:
        count = len(parse_seeds(self.seeds))
        if self.group_size < _SMALLEST_GROUP:
            raise ConfigError(f"group_size must be at least 2, got {self.group_size}; an advantage compares the members of a group")
        if self.antithetic and self.group_size % 2:
            raise ConfigError(f"antithetic members come in pairs, but group_size is {self.group_size}; make it even")
        if count < self.groups:
            raise ConfigError(f"seeds names {count} episodes, fewer than the {self.groups} groups of an update; name more, or lower groups")
        if self.evaluation_seeds is not None:
            check_disjoint(parse_seeds(self.seeds), parse_seeds(self.evaluation_seeds))

    def _check_numbers(self) -> None:
        if not (self.max_grad_norm > 0 and self.ratio_tolerance > 0 and self.timeout_s > 0):
            given = f"max_grad_norm={self.max_grad_norm}, ratio_tolerance={self.ratio_tolerance}, timeout_s={self.timeout_s}"
            raise ConfigError(f"max_grad_norm, ratio_tolerance and timeout_s must be > 0, got {given}")
        if not 0 <= self.correlation < 1:
            raise ConfigError(f"correlation must lie in [0, 1), got {self.correlation}; 0 tries every latent on its own")
        if not self.entropy_weight >= 0:
            raise ConfigError(f"entropy_weight must be >= 0, got {self.entropy_weight}; 0 leaves the entropy alone")
        if self.workers < 0:
            raise ConfigError(f"workers must be >= 0, got {self.workers}; 0 keeps the environments in this process")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie inside (0, 1), got {self.ema_decay}; null trains without an average")
        if not self.objective.separable and self.minibatches > 1:
            raise ConfigError(f"{type(self.objective).__name__} looks at all decisions at once; set minibatches to 1")
