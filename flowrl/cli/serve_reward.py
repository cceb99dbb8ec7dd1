"""Serve a reward over HTTP, for trainers in other processes, environments or on other machines.

Examples:
  flowrl serve-reward rewards/serve_digits
  flowrl serve-reward rewards/serve_digits port=8200 batch=64
  FLOWRL_REWARD_TOKEN=$(openssl rand -hex 32) flowrl serve-reward rewards/serve_digits host=0.0.0.0

A trainer uses it as rewards.RemoteReward. SIGTERM and Ctrl-C end it once the requests under way are answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument(
        "config", metavar="CONFIG", help="a YAML file, or the name of a bundled config, that describes a rewards.server.RewardServer"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config with other values")


def run(args: argparse.Namespace) -> int:
    """Serve until told to end.

    Raises:
        ConfigError: If the config describes something else, or the address needs a token.
    """
    from flowrl.cli.console import load_component, say, show_progress_messages
    from flowrl.errors import ConfigError
    from rewards.server import RewardServer

    server, _ = load_component(args.config, args.overrides)
    if not isinstance(server, RewardServer):
        raise ConfigError(
            f"{args.config} describes a {type(server).__name__}, not a rewards.server.RewardServer; "
            "write one around the reward: target: rewards.server.RewardServer"
        )
    show_progress_messages()
    server.run()
    say("ended; every request under way was answered")
    return 0
