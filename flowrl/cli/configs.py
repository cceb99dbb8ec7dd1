"""List, show and copy the bundled configs.

Examples:
  flowrl configs list
  flowrl configs show image/digits_g2rpo
  flowrl configs copy image/digits_g2rpo my.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action")
    actions.add_parser("list", help="names and purposes")
    show = actions.add_parser("show", help="print one")
    copy = actions.add_parser("copy", help="write one to a file of your own")
    for action in (show, copy):
        action.add_argument("name", metavar="NAME", help="as flowrl configs list prints it")
    copy.add_argument("destination", metavar="FILE", type=Path, nargs="?", help="default: the config's own file name, in this folder")


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    from flowrl.cli.console import say
    from flowrl.config import bundled_configs, config_path

    if args.action == "list":
        width = max(map(len, bundled_configs()), default=0)
        for name in bundled_configs():
            say(f"{name:<{width}}  {_purpose(config_path(name))}")
    elif args.action == "show":
        say(config_path(args.name).read_text(encoding="utf-8").rstrip())
    else:
        say(str(_copy(config_path(args.name), args.destination)))
    return 0


def _purpose(path: Path) -> str:
    """The comment that a config opens with."""
    first = path.read_text(encoding="utf-8").split("\n", maxsplit=1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _copy(source: Path, destination: Path | None) -> Path:
    target = destination or Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise ValueError(f"{target} exists already; give another file name, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return target
