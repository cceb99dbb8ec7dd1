"""List, show and copy the bundled configs.

Examples:
  flowrl configs list
  flowrl configs list image
  flowrl configs show image/digits_g2rpo
  flowrl configs copy image/digits_g2rpo my.yaml
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]

COMMAND = re.compile(r"(Commands?|Source|Prompts):|OMP_NUM_THREADS=")
SENTENCE_END = re.compile(r"(?<=[.?!])(?<!Sec\.)\s")
UNFINISHED = re.compile(r",? (and )?then( on a GPU)?$")  # a command on a line of its own follows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action")
    listing = actions.add_parser("list", help="names and purposes")
    listing.add_argument("part", metavar="PART", nargs="?", default="", help="only those whose name has this in it, such as image or 24gb")
    show = actions.add_parser("show", help="print one")
    copy = actions.add_parser("copy", help="write one to a file of your own")
    for action in (show, copy):
        action.add_argument("name", metavar="NAME", help="as flowrl configs list prints it")
    copy.add_argument("destination", metavar="FILE", type=Path, nargs="?", help="default: the config's own file name, in this folder")


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    from flowrl.cli.console import say
    from flowrl.config import config_path

    if args.action == "list":
        _list(args.part)
    elif args.action == "show":
        say(config_path(args.name).read_text(encoding="utf-8").rstrip())
    else:
        say(str(_copy(config_path(args.name), args.destination)))
    return 0


def _list(part: str) -> None:
    from flowrl.cli.console import say
    from flowrl.config import bundled_configs, config_path

    names = [name for name in bundled_configs() if part in name]
    if not names:
        folders = sorted({name.partition("/")[0] for name in bundled_configs()})
        raise ValueError(f"no bundled config has {part!r} in its name; flowrl configs list shows all, in {', '.join(folders)}")
    width = max(map(len, names))
    for name in names:
        say(f"{name:<{width}}  {_purpose(config_path(name))}")


def _purpose(path: Path) -> str:
    """The first sentence of the comment that a config opens with, without the commands that stand there."""
    opening = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    prose = itertools.takewhile(lambda line: not COMMAND.match(line), (line.removeprefix("#").strip() for line in opening))
    sentence = SENTENCE_END.split(" ".join(prose), maxsplit=1)[0]
    whole = UNFINISHED.sub("", sentence)
    return whole if not whole or whole[-1] in ".?!" else f"{whole}."


def _copy(source: Path, destination: Path | None) -> Path:
    target = destination or Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise ValueError(f"{target} exists already; give another file name, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return target
