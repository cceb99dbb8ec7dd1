"""What the commands share: the terminal, tables, opening a run."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.table import Table

    from flowrl.train.outcomes import Outcome
    from flowrl.train.trainer import RLTrainer

__all__ = [
    "add_trust_option",
    "command_of",
    "load_component",
    "load_robot_job",
    "load_trainer",
    "outcome_table",
    "row",
    "say",
    "show",
    "show_progress_messages",
]

_COMMANDS = {
    "CompositionEvaluation": "compose eval",
    "Pretrain": "pretrain",
    "Recording": "record",
    "Rollout": "rollout",
    "WeightSearch": "compose search",
}

WIDTH = 110  # columns of a table that is written to a file or pipe


def say(text: str = "") -> None:
    """Write a line to standard output, whole, however long: paths can be copied."""
    sys.stdout.write(text + "\n")


def row(name: str, value: object) -> str:
    """A line of two columns."""
    return f"{name:<22} {value}"


def show(table: Table) -> None:
    """Draw a table."""
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH).print(table)


class _AboveBars(logging.StreamHandler[TextIO]):
    """Writes each message on a line of its own: on a terminal above any progress bar, in a file, where no bar can be wiped, below it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if self.stream.isatty() or not len(getattr(tqdm, "_instances", ())):
            tqdm.write(self.format(record), file=self.stream)
        else:
            self.stream.write(f"\n{self.format(record)}\n")
            self.flush()


def show_progress_messages() -> None:
    """Let flowrl's own log messages through to standard error; of several processes, the others only warn."""
    handler = _AboveBars()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("flowrl")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


def outcome_table(rows: Sequence[Outcome], title: str) -> Table:
    """Scores before and after, with the change and its 95 % interval."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from flowrl.train.figures import figure, signed

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in ("score", "role"):
        table.add_column(name)
    for name in ("before", "after", "change, 95 %", "better on"):
        table.add_column(name, justify="right")
    for row in rows:
        after, change = "–", "–"
        if row.after is not None and row.difference is not None:
            after, change = figure(row.after, 3), signed(row.difference, row.ci95)
        wins = "–" if row.win_rate is None else f"{row.win_rate:.0%}"
        style = "blue" if row.rose else "red" if row.fell else None
        table.add_row(row.label, row.role, figure(row.before, 3), after, change, wins, style=style)
    return table


def load_component(source: str, overrides: Sequence[str] = ()) -> tuple[object, Path | None]:
    """Build what a config or a run folder describes.

    Args:
        source: A config (file or bundled name), or a folder that a run wrote.
        overrides: ``key=value`` each.

    Returns:
        The component, and the run folder if it was one.

    Raises:
        ConfigError: If there is no such config, or it has errors.
    """
    from flowrl.config import instantiate, load_config
    from flowrl.errors import ConfigError

    folder = Path(source) if Path(source).is_dir() else None
    if folder and not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is no run folder: it has no config.yaml; give the folder that flowrl train printed")
    return instantiate(load_config(folder / "config.yaml" if folder else source, overrides)), folder


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """The flag that lets pickled checkpoints be read."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="read pickled checkpoints too; they can run any code",
    )


def load_robot_job(args: argparse.Namespace) -> object:
    """Build what a config of policies describes; with ``--trust-checkpoint`` its policies may come from pickles.

    Raises:
        ConfigError: If there is no such config, or it has errors.
    """
    from flowrl.config import instantiate, load_config
    from robot.adapters import with_trust

    config = load_config(args.config, args.overrides)
    return instantiate(with_trust(config) if args.trust_checkpoint else config)


def load_trainer(source: str, overrides: Sequence[str] = ()) -> tuple[RLTrainer, Path | None]:
    """Build the trainer that a config or a run folder describes; no model is loaded.

    Args:
        source: A config (file or bundled name), or a folder that ``flowrl train`` wrote.
        overrides: ``key=value`` each.

    Returns:
        The trainer, and the run folder if it was one.

    Raises:
        ConfigError: If it describes something else, or has errors.
    """
    from flowrl.errors import ConfigError
    from flowrl.train import RLTrainer

    trainer, folder = load_component(source, overrides)
    if not isinstance(trainer, RLTrainer):
        raise ConfigError(f"{source} describes a {type(trainer).__name__}, not a flowrl.train.RLTrainer{_other_command(trainer)}")
    return trainer, folder


def command_of(component: object) -> str | None:
    """The command that runs a component where that is not ``flowrl train``; None where there is none."""
    return _COMMANDS.get(type(component).__name__)


def _other_command(component: object) -> str:
    command = command_of(component)
    return f"; run it with flowrl {command}" if command else ""
