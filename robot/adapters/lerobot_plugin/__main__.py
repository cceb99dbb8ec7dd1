"""Write the distribution ``lerobot_policy_gpc``: ``python -m robot.adapters.lerobot_plugin --out FOLDER``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["main", "write_distribution"]

_PROJECT = """\
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "lerobot_policy_gpc"
version = "0.1.0"
description = "flowrl's composition of policies as a LeRobot policy"
dependencies = ["flowrl-torch"]

[tool.hatch.build.targets.wheel]
packages = ["lerobot_policy_gpc"]
"""
_PACKAGE = '''\
"""flowrl's composition of policies as LeRobot's policy type "gpc"; importing it registers the type."""

from robot.adapters.lerobot_plugin.configuration_gpc import GpcConfig
from robot.adapters.lerobot_plugin.modeling_gpc import GpcPolicy
from robot.adapters.lerobot_plugin.processor_gpc import make_gpc_pre_post_processors

__all__ = ["GpcConfig", "GpcPolicy", "make_gpc_pre_post_processors"]
'''


def write_distribution(out: Path) -> None:
    """Write an installable folder whose one package only imports flowrl's.

    Args:
        out: The folder; new or empty.

    Raises:
        ValueError: If it holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    package = out / "lerobot_policy_gpc"
    package.mkdir(parents=True)
    (out / "pyproject.toml").write_text(_PROJECT, encoding="utf-8")
    (package / "__init__.py").write_text(_PACKAGE, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Write it and say how to go on.

    Args:
        arguments: Of the command line; None for the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m robot.adapters.lerobot_plugin", description="Write the distribution lerobot_policy_gpc."
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    out = parser.parse_args(arguments).out
    try:
        write_distribution(out)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(f"wrote {out}; in LeRobot's environment: pip install {out.resolve()}; then lerobot-eval --policy.type=gpc\n")


if __name__ == "__main__":
    main()
