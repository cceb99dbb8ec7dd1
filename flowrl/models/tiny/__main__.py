"""``python -m flowrl.models.tiny NAME FOLDER``: write a small random pipeline to a folder."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from flowrl.models.quiet import quiet_libraries
from flowrl.models.tiny import TINY

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pipeline that is asked for, and say how to load it.

    Args:
        arguments: Of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m flowrl.models.tiny", description="Write a small random pipeline to a folder.")
    parser.add_argument("name", choices=sorted(TINY), help="which pipeline")
    parser.add_argument("folder", help="where to; made if it is not there")
    chosen = parser.parse_args(arguments)
    with quiet_libraries():
        TINY[chosen.name]().save_pretrained(chosen.folder)
    sys.stdout.write(
        f"wrote {chosen.folder}; load it as {{target: flowrl.models.AutoModel, path: {chosen.folder}, height: 32, width: 32}}\n"
    )


if __name__ == "__main__":
    main()
