"""Train as a config says: reinforcement learning of a model, or a robot policy or world-action model from demonstrations.

Examples:
  flowrl train image/digits_g2rpo optimizer.lr=3e-4 run_dir=runs/mine
  flowrl train image/digits_g2rpo run_dir=runs/mine --resume
  flowrl train robot/bc_pusht_diffusion run_dir=runs/pusht
  flowrl train robot/wam_pusht times.target=robot.world.SharedTimes run_dir=runs/wam_shared
  accelerate launch -m flowrl.cli.train image/digits_g2rpo
  torchrun --nproc_per_node 2 -m flowrl.cli.train image/digits_g2rpo
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from flowrl.train.run import RunSummary

__all__ = ["add_arguments", "run"]

STOPPED_BY_USER = 130


class Outcome(Protocol):
    """What a finished run of anything but RL tells."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that reports."""
        ...

    def lines(self) -> Sequence[str]:
        """What to print: results, and where everything is."""
        ...


class Job(Protocol):
    """What ``flowrl train`` runs: :class:`flowrl.train.RLTrainer`, :class:`robot.learning.BehaviourCloning` and their like."""

    def run(self, *, resume: bool = False) -> RunSummary | Outcome:
        """Train; ``resume`` goes on from the newest checkpoint."""
        ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a bundled config (flowrl configs list)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config with other values")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of run_dir; start afresh if there is none")


def run(args: argparse.Namespace) -> int:
    """Train, then report."""
    from flowrl.cli.console import say, show_progress_messages
    from flowrl.train.run import RunSummary

    job = _load(args)
    show_progress_messages()
    earlier = _metrics_state(job)
    try:
        summary = job.run(resume=args.resume)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            say(f"\nStopped. Go on with: {resume_command(args)}")
        return STOPPED_BY_USER
    except Exception:
        if os.environ.get("RANK", "0") == "0" and _metrics_state(job) not in (None, earlier):
            _report_of_stopped(job)
        raise
    if summary.is_main and isinstance(summary, RunSummary):
        _report(summary.run_dir, summary.checkpoint)
    elif summary.is_main:
        say("\n".join(cast("Outcome", summary).lines()))
    return 0


def _load(args: argparse.Namespace) -> Job:
    """What the config describes, if it can be trained.

    Raises:
        ConfigError: If it cannot, or the config has errors.
    """
    import inspect

    from flowrl.cli.console import command_of, load_component, load_trainer

    component, _ = load_component(args.config, args.overrides)
    parameters = inspect.signature(component.run).parameters if hasattr(component, "run") else {}
    if command_of(component) or "resume" not in parameters:
        return load_trainer(args.config, args.overrides)[0]  # says what it is, and what to do with it
    return cast("Job", component)


def resume_command(args: argparse.Namespace) -> str:
    """The command that continues this run."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "the same command with --resume"
    return shlex.join(["flowrl", "train", args.config, *args.overrides, "--resume"])


def _metrics_state(job: object) -> tuple[int, int] | None:
    """Size and last change of the run folder's ``metrics.jsonl``: a run that wrote nothing leaves an earlier one's report alone."""
    from flowrl.train.metrics import METRICS_FILE

    folder = getattr(job, "folder", None)
    try:
        found = None if folder is None else (folder / METRICS_FILE).stat()
    except OSError:
        return None
    return None if found is None else (found.st_size, found.st_mtime_ns)


def _report_of_stopped(job: object) -> None:
    """Write the report of a run that an error has ended; whatever goes wrong here, that error is the one to tell."""
    from flowrl.cli.console import say
    from flowrl.cli.report import write

    try:
        say(f"report       {write(cast('Any', job).folder)}")
    except Exception as error:
        say(f"report       could not be written: {error}")


def _report(run_dir: Path, checkpoint: Path) -> None:
    """Print the outcome and where everything is."""
    from flowrl.cli.console import outcome_table, say, show
    from flowrl.train.outcomes import outcomes, warnings
    from flowrl.train.record import read_record
    from flowrl.train.report import BEFORE_AFTER_FILE, write_report

    report = write_report(run_dir)
    rows = outcomes(read_record(run_dir))
    if rows:
        show(outcome_table(rows, f"{run_dir}: before and after"))
    for warning in warnings(rows):
        say(f"Reward hacking? {warning}")
    say(f"report       {report}")
    if (run_dir / BEFORE_AFTER_FILE).is_file():
        say(f"before/after {run_dir / BEFORE_AFTER_FILE}")
    say(f"checkpoint   {checkpoint}")


if __name__ == "__main__":
    from flowrl.cli.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
