"""Train a small pipeline from random weights, as a config says.

Examples:
  flowrl pretrain image/digits_pretrain save_to=my_model
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a bundled config (flowrl configs list)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config with other values")


def run(args: argparse.Namespace) -> int:
    """Pretrain, then say where the pipeline is."""
    from flowrl.cli.console import say, show_progress_messages
    from flowrl.config import instantiate, load_config
    from flowrl.errors import ConfigError
    from flowrl.train import Pretrain

    job = instantiate(load_config(args.config, args.overrides))
    if not isinstance(job, Pretrain):
        raise ConfigError(f"{args.config} describes a {type(job).__name__}, not a flowrl.train.Pretrain; RL runs start with flowrl train")
    show_progress_messages()
    say(f"pipeline {job.run()}")
    return 0
