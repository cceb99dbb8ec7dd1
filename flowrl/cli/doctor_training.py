"""The doctor's rows about training on demonstrations: what there is to learn from, and how a batch is shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robot.gating import GateTraining
    from robot.learning.lesson import Training

__all__ = ["gate_parts", "training_parts"]


def gate_parts(job: GateTraining) -> None:
    """Print what each update of a gate's training rolls out.

    Args:
        job: The configuration.
    """
    from flowrl.cli.console import row, say
    from flowrl.train.figures import figure
    from robot.evaluation import parse_seeds

    episodes, longest = job.groups * job.group_size, job.env.max_steps
    say(row("groups", f"{job.groups} of {job.group_size} per update: {episodes} episodes, {job.rows} side by side"))
    say(row("each update", f"at most {figure(episodes * longest)} control steps; {job.gate.steps} denoising steps a chunk of actions"))
    say(row("the run", f"{job.updates} updates, {figure(job.updates * episodes)} episodes"))
    if job.evaluation_seeds is not None:
        say(row("evaluation", f"{len(parse_seeds(job.evaluation_seeds))} episodes of the gate and as many of the shared schedule"))


def training_parts(job: Training, world_sizes: Sequence[int]) -> list[str]:
    """Print what a job learns from and how long it takes; return what stands in its way.

    Args:
        job: The configuration; its demonstrations are read, nothing is trained.
        world_sizes: Numbers of processes to tell of.
    """
    from flowrl.cli.console import row, say
    from flowrl.errors import ConfigError, FlowrlError
    from flowrl.train.figures import figure

    try:
        lesson = job.lesson()
    except (FlowrlError, ValueError, OSError) as error:
        return [f"config: {error}"]
    facts, epochs = lesson.facts, job.steps * job.batch_size / lesson.examples
    say(row("demonstrations", f"{facts['episodes']} episodes, {facts['held_out']} held out, {figure(facts['steps'])} control steps"))
    say(row("the run", f"{job.steps} steps of {job.batch_size}, {figure(epochs, 3)} times through {figure(lesson.examples)} examples"))
    say(row("leaves", job.folder / job.kind.name))
    for world in world_sizes:
        try:
            told = f"{job.share(world)} each"
        except ConfigError as error:
            told = str(error).rpartition("; ")[2]
        say(row(f"  on {world} process{'es' if world > 1 else ''}", told))
    return []
