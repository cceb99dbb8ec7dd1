"""Tasks, schedules and ways of learning that ``benchmarks/noisegate.py`` compares."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flowrl.config import instantiate, load_config
from robot import MetaWorld, PerTokenSchedule, PushT
from robot.gating import OutcomeReward
from robot.gating.noise import Hold
from robot.world.checkpoint import WORLD_ACTION_MODELS

__all__ = ["LEARNED", "TASKS", "Learned", "Task", "backbone", "hand_made"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Where schedules are compared.

    Attributes:
        title: For tables.
        env: Where the model acts.
        record: Config of its demonstrations;
        record_overrides: of that.
        train: Config of its world-action model;
        train_overrides: of that.
        steps: Denoising steps of every schedule.
        execute: Actions of a chunk to execute; None for the model's own.
        primary: What counts: ``success``, ``max_reward`` or ``return``.
        graded: The reward that grades failures.
    """

    title: str
    env: Any
    record: str
    train: str
    record_overrides: tuple[str, ...] = ()
    train_overrides: tuple[str, ...] = ()
    steps: int = 5
    execute: int | None = None
    primary: str = "success"
    graded: OutcomeReward = field(default_factory=lambda: OutcomeReward(success=0.5, max_reward=0.5))


IN_METAWORLD = OutcomeReward(success=0.5, max_reward=0.05)  # its rewards go up to 10

TASKS = {
    "pusht": Task(
        title="PushT",
        env=PushT(max_steps=150),
        record="robot/record_pusht",
        record_overrides=("seeds='0:500'",),
        train="robot/wam_pusht",
        execute=4,
        primary="max_reward",
    ),
    "metaworld_peg": Task(
        title="Meta-World peg-insert-side",
        env=MetaWorld(task="peg-insert-side", max_steps=150),
        record="robot/record_metaworld_peg",
        train="robot/wam_metaworld_peg",
        graded=IN_METAWORLD,
    ),
    "metaworld_push": Task(
        title="Meta-World push",
        env=MetaWorld(task="push", max_steps=200),
        record="robot/record_metaworld_push",
        train="robot/wam_metaworld_push",
        graded=IN_METAWORLD,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A way of learning a schedule.

    Attributes:
        constants: Whether the gate is one multiplier per latent, without a look at the state.
        hold: How long what is tried is kept.
        antithetic: Whether every attempt is beside its opposite.
        graded: Whether the reward grades failures.
        warm: Whether it begins at the constants of the same training seed.
        lr: Of AdamW.
    """

    constants: bool = False
    hold: Hold = "episode"
    antithetic: bool = True
    graded: bool = True
    warm: bool = False
    lr: float = 5.0e-4


LEARNED = {
    "constants": Learned(constants=True, lr=2.0e-2),
    "gate": Learned(),
    "gate, plain": Learned(hold="step", antithetic=False, graded=False),
    "gate, warm": Learned(warm=True),
    "gate, fast": Learned(lr=2.0e-3),
}


def hand_made(steps: int, frames: int) -> dict[str, PerTokenSchedule]:
    """Every one takes ``steps`` evaluations."""
    paces = {"constant 0.25": 0.25, "half": 0.5, "constant 0.75": 0.75}
    return {
        "shared": PerTokenSchedule.shared(steps, frames),
        "masked": PerTokenSchedule.masked(steps, frames),
        **{name: PerTokenSchedule.constant((pace,) * frames, steps) for name, pace in paces.items()},
        "pyramid 0.5": PerTokenSchedule.pyramid(steps, frames, lag=0.5),
        "video first": PerTokenSchedule.video_first(steps, frames),
        "action first": PerTokenSchedule.action_first(steps, frames),
    }


def backbone(task: Task, given: str | None, folder: Path) -> Path:
    """The world-action model's file, with as many actions of a chunk executed as the task says.

    Args:
        task: Where it will act.
        given: The file; None for the config's, which is trained, and its demonstrations recorded, unless it is there.
        folder: For a copy that executes another number of actions.
    """
    path = Path(given) if given else _trained(task)
    if task.execute is None:
        return path
    recipe, tensors = WORLD_ACTION_MODELS.load(path)
    deployed = folder / WORLD_ACTION_MODELS.name
    deployed.parent.mkdir(parents=True, exist_ok=True)
    training = WORLD_ACTION_MODELS.read_training(path)
    return WORLD_ACTION_MODELS.save(deployed, replace(recipe, execute=task.execute), tensors, training)


def _trained(task: Task) -> Path:
    job = instantiate(load_config(task.train, list(task.train_overrides)))
    path = Path(job.run_dir) / WORLD_ACTION_MODELS.name
    if not path.is_file():
        if not Path(job.demonstrations.path).is_file():
            instantiate(load_config(task.record, list(task.record_overrides))).run(resume=True)
        job.run(resume=True)
    return path
