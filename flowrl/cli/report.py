"""Write one self-contained HTML page about a run, finished or not.

Examples:
  flowrl report runs/digits_g2rpo
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run", "write"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a folder that flowrl train wrote")


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from flowrl.cli.console import say

    say(str(write(args.run)))
    return 0


def write(folder: Path) -> Path:
    """Write the page of a run of any kind.

    Args:
        folder: What ``flowrl train`` wrote.

    Returns:
        The page's path.

    Raises:
        ConfigError: If the folder holds episodes of a rollout or a composition, whose own command writes the page.
    """
    from flowrl.config.targets import find_target
    from flowrl.errors import ConfigError
    from flowrl.train.record import read_record
    from robot.gating import GateTraining
    from robot.learning.lesson import Training

    if (folder / "episodes.jsonl").is_file():
        raise ConfigError(f"{folder} holds episodes; the page is {folder / 'report.html'}: the same command with --resume writes it again")
    target = read_record(folder).config.get("target")
    job = None if target is None else find_target(target, "config.target")
    if isinstance(job, type) and issubclass(job, Training):
        from robot.learning.report import write_report as write_training_report

        return write_training_report(folder, job)
    if job is GateTraining:
        from robot.gating.report import REPORT_FILE
        from robot.gating.report import write_report as write_gate_report

        return write_gate_report(folder).folder / REPORT_FILE
    from flowrl.train.report import write_report

    return write_report(folder)
