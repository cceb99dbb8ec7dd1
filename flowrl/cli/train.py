"""Fine-tune a model by reinforcement learning, as a config says.

Examples:
  flowrl train image/digits_g2rpo optimizer.lr=3e-4 run_dir=runs/mine
  flowrl train image/digits_g2rpo run_dir=runs/mine --resume
  accelerate launch -m flowrl.cli.train image/digits_g2rpo
  torchrun --nproc_per_node 2 -m flowrl.cli.train image/digits_g2rpo
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

__all__ = ["add_arguments", "run"]

STOPPED_BY_USER = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a bundled config (flowrl configs list)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config with other values")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of run_dir; start afresh if there is none")


def run(args: argparse.Namespace) -> int:
    """Train, then report."""
    from flowrl.cli.console import load_trainer, say, show_progress_messages

    trainer, _ = load_trainer(args.config, args.overrides)
    show_progress_messages()
    try:
        summary = trainer.run(resume=args.resume)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            say(f"\nStopped. Go on with: {resume_command(args)}")
        return STOPPED_BY_USER
    if summary.is_main:
        _report(summary.run_dir, summary.checkpoint)
    return 0


def resume_command(args: argparse.Namespace) -> str:
    """The command that continues this run."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "the same command with --resume"
    return shlex.join(["flowrl", "train", args.config, *args.overrides, "--resume"])


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
