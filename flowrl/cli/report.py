"""Write one self-contained HTML page about a run, finished or not.

Examples:
  flowrl report runs/digits_g2rpo
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a folder that flowrl train wrote")


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from flowrl.cli.console import say
    from flowrl.train.record import read_record

    if str(read_record(args.run).config.get("target", "")).startswith("robot.learning."):
        from robot.learning.report import write_report
    else:
        from flowrl.train.report import write_report
    say(str(write_report(args.run)))
    return 0
