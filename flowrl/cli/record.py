"""Record demonstrations of a scripted expert, as a config says.

Examples:
  flowrl record robot/record_metaworld_push
  flowrl record robot/record_metaworld_push env.task=drawer-open out=runs/demonstrations/drawer.hdf5 seeds=0:50 workers=2
  flowrl record robot/record_metaworld_push --resume
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]

STOPPED_BY_USER = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a bundled config (flowrl configs list)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config with other values")
    parser.add_argument("--resume", action="store_true", help="go on with a recording that was stopped; start afresh if there is none")


def run(args: argparse.Namespace) -> int:
    """Record, then say what came of it."""
    from flowrl.cli.console import say, show_progress_messages
    from flowrl.config import instantiate, load_config
    from flowrl.errors import ConfigError
    from robot.demonstrations import Recording

    recording = instantiate(load_config(args.config, args.overrides))
    if not isinstance(recording, Recording):
        raise ConfigError(f"{args.config} describes a {type(recording).__name__}, not a robot.demonstrations.Recording")
    show_progress_messages()
    try:
        recorded = recording.run(resume=args.resume)
    except KeyboardInterrupt:
        say(f"\nStopped. Go on with: {shlex.join(['flowrl', 'record', args.config, *args.overrides, '--resume'])}")
        return STOPPED_BY_USER
    say(f"{recorded.episodes} episodes of {recorded.steps} steps in all")
    say(
        f"solved         {recorded.successes} of {recorded.tried} seeds"
        + (f", {recorded.failed} ended by errors" if recorded.failed else "")
    )
    say(f"demonstrations {recorded.path}")
    say(f"seeds          {recorded.log}")
    return 0
