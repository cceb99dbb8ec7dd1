"""What keeps a simulator from running here, and the remedy: a library that is missing, a MuJoCo that does not fit, nothing to draw with.

Nothing here imports a simulator; what has to be tried is tried in a process of its own.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.errors import MissingExtraError
from robot.envs.needs import library_problems
from robot.envs.offscreen import BACK_ENDS, INSTALL_GL, gl_back_end

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EXTRAS", "SIMULATORS", "Library", "drawing_problem", "extra_problems", "gl_problems", "import_problem", "installed", "tried"]

PATIENCE_S = 120
"""For a process that tries something; a first EGL context can take seconds, a stuck driver for ever."""


@dataclass(frozen=True)
class Library:
    """A library that an extra installs.

    Attributes:
        module: Its import name.
        at_least: Oldest version that works.
        below: First version that does not; empty if none is known.
        distribution: Its name for pip, if it differs.
    """

    module: str
    at_least: str = "0"
    below: str = ""
    distribution: str = ""


EXTRAS: dict[str, tuple[Library, ...]] = {
    "robot": (Library("gymnasium", "1.0", "2"), Library("h5py", "3.10"), Library("imageio", "2.34"), Library("pyarrow", "15", "26")),
    "pusht": (Library("gym_pusht", "0.1.6", distribution="gym-pusht"), Library("gymnasium", "1.0", "2")),
    "metaworld": (Library("metaworld", "3.0"), Library("mujoco", "3.0", "3.10"), Library("gymnasium", "1.0", "2")),
    "robosuite": (Library("robosuite", "1.5.1", "1.6"), Library("mujoco", "3.3", "3.10"), Library("gymnasium", "1.0", "2")),
    "robomimic": (Library("robomimic", "0.3"),),
}
"""The extras for robots; the first library of each is what it is named after. robosuite stumbles over MuJoCo 3.10 (``mj_fullM``) and 4
(the type of a joint), and pip alone takes the newest."""

SIMULATORS = ("pusht", "metaworld", "robosuite")
"""The extras that bring a simulator."""


def installed(extra: str) -> str | None:
    """Which of an extra's libraries are there, with their versions; None if the one that it is named after is absent.

    Args:
        extra: One of :data:`EXTRAS`.
    """
    found = {library.distribution or library.module: _version(library) for library in EXTRAS[extra]}
    if next(iter(found.values())) is None:
        return None
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def extra_problems(extra: str) -> list[str]:
    """What of an extra is missing or of a version that does not work, each with its remedy.

    Args:
        extra: One of :data:`EXTRAS`.
    """
    return [
        problem
        for library in EXTRAS[extra]
        for problem in library_problems(
            library.module, extra, distribution=library.distribution, at_least=library.at_least, below=library.below
        )
    ]


def import_problem(module: str) -> str | None:
    """Why an installed library cannot be imported; None if it can.

    Args:
        module: Its import name.
    """
    return tried(("-W", "ignore", "-c", f"import {module}"))


def gl_problems() -> list[str]:
    """Whether MuJoCo can draw without a window: a tiny picture is drawn for a try.

    Returns:
        Nothing if the back end that would be used works, else one problem with the remedy that helps here.
    """
    try:
        used = gl_back_end()
    except MissingExtraError as error:
        return [str(error)]
    why = drawing_problem(used)
    if why is None:
        return []
    others = [name for name in BACK_ENDS if name != used and drawing_problem(name) is None]
    return [f"MuJoCo cannot draw with {used} ({why}); " + (f"set MUJOCO_GL={others[0]}, which works here" if others else INSTALL_GL)]


@functools.cache
def drawing_problem(back_end: str) -> str | None:
    """Why a back end cannot draw; None if it can. Tried once in a process's life.

    Args:
        back_end: One of :data:`robot.envs.offscreen.BACK_ENDS`.
    """
    return tried((str(Path(__file__).with_name("draw_once.py")), back_end), {"MUJOCO_GL": back_end, "PYOPENGL_PLATFORM": back_end})


def tried(arguments: tuple[str, ...], variables: Mapping[str, str] | None = None, patience_s: float = PATIENCE_S) -> str | None:
    """Run Python in a process of its own.

    Args:
        arguments: Of the interpreter.
        variables: Of its environment, besides those of this process.
        patience_s: Seconds after which it counts as stuck.

    Returns:
        None if it ended well, else the last line of what it complained about.
    """
    command = (sys.executable, "-P", *arguments)  # -P: robot/envs has modules that are named like the simulators
    surroundings = {**os.environ, **(variables or {})}
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, env=surroundings, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {patience_s:g} s"
    if ended.returncode == 0:
        return None
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit status {ended.returncode}"


def _version(library: Library) -> str | None:
    if importlib.util.find_spec(library.module) is None:
        return None
    try:
        return importlib.metadata.version(library.distribution or library.module)
    except importlib.metadata.PackageNotFoundError:
        return None
