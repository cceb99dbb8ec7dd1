"""``flowrl``: one command with a subcommand for each thing one does with a run."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Protocol, cast

from flowrl import __version__
from flowrl.cli import compose, configs, doctor, evaluate, pretrain, record, report, rollout, sample, serve_reward, train

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

STOPPED_BY_USER, WRONG_USE = 130, 2


class Command(Protocol):
    """A module of `flowrl.cli`; its first docstring line is its help."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Say what the command takes."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the result is the exit status."""
        ...


COMMANDS = {
    "train": train,
    "pretrain": pretrain,
    "record": record,
    "rollout": rollout,
    "compose": compose,
    "sample": sample,
    "evaluate": evaluate,
    "report": report,
    "serve-reward": serve_reward,
    "doctor": doctor,
    "configs": configs,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``flowrl``.

    Args:
        arguments: Of the command line; None takes the process's own.

    Returns:
        0 on success, 2 for what the user can mend (one message, no traceback), 130 after Ctrl-C.
    """
    args = _parse(sys.argv[1:] if arguments is None else list(arguments))
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # on a CPU it misses a kernel of no use here, and says so whenever it is imported
    from flowrl.errors import FlowrlError

    try:
        return cast("Command", args.command).run(args)
    except (FlowrlError, ValueError) as error:
        if args.traceback:
            raise
        sys.stderr.write(f"flowrl: error: {error}\n")
        return WRONG_USE
    except OSError as error:  # a full disk, a folder that cannot be made: the system's words seldom say what for
        if args.traceback:
            raise
        sys.stderr.write(f"flowrl: error: {error}; flowrl --traceback {args.called} … shows where\n")
        return WRONG_USE
    except KeyboardInterrupt:
        sys.stderr.write("flowrl: stopped\n")
        return STOPPED_BY_USER


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="flowrl", description="Reinforcement learning for diffusion and flow-matching policies.")
    parser.add_argument("--version", action="version", version=f"flowrl {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").split("\n", maxsplit=1)[0]
        command = commands.add_parser(
            name, help=summary.replace("%", "%%"), description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(command=module, called=name)
    args, rest = parser.parse_known_args(arguments)
    if "overrides" in args:  # argparse gives up on key=value after an option
        args.overrides += [text for text in rest if _is_override(text)]
        rest = [text for text in rest if not _is_override(text)]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _is_override(text: str) -> bool:
    return "=" in text and not text.startswith("-")


if __name__ == "__main__":
    sys.exit(main())
