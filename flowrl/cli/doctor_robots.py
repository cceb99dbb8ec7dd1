"""The doctor's rows about robots: extras, simulators, and the environments of a config."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from robot.learning.files import NamesFile

__all__ = ["robot_extras", "robot_parts", "simulators"]


def robot_extras() -> list[str]:
    """Print one row for each extra for robots; return what is wrong with the simulators that are there. Nothing is imported."""
    from flowrl.cli.console import row, say
    from robot.envs.check import EXTRAS, SIMULATORS, extra_problems, installed

    found: list[str] = []
    for extra in EXTRAS:
        there = installed(extra)
        problems = extra_problems(extra) if there else []
        say(row(f"extra {extra}", "; ".join([there, *problems]) if there else f"absent; pip install 'flowrl-torch[{extra}]'"))
        found += [f"extra {extra}: {problem}" for problem in problems if extra in SIMULATORS]
    return found


def simulators() -> list[str]:
    """Start every simulator that is there and draw a picture, each in a process of its own; print and return what fails."""
    from flowrl.cli.console import row, say
    from robot.envs.check import EXTRAS, SIMULATORS, extra_problems, import_problem

    say()
    found = []
    for extra in SIMULATORS:
        if not extra_problems(extra):
            module = EXTRAS[extra][0].module
            why = import_problem(module)
            say(row(module, "fails" if why else "starts"))
            found += [f"{module} is installed and fails ({why}); pip install --force-reinstall 'flowrl-torch[{extra}]'"] if why else []
    return [*found, *_drawing()]


def robot_parts(component: Any) -> list[str]:
    """What the parts of a config say stands in their way (a part may have a method ``problems``), each with its place in the config.

    Args:
        component: What the config describes.
    """
    from flowrl.cli.console import row, say
    from robot.learning.files import NamesFile

    found = []
    for place, part in _parts(component, "config"):
        if hasattr(part, "problems"):
            problems = part.problems()
            name = getattr(part, "name", type(part).__name__)
            say(row(place, f"{name} {'does not run here' if problems else 'runs here'}"))
            found += [f"{place}: {problem}" for problem in problems]
        if isinstance(part, NamesFile):
            found += _missing_file(place, part)
    if getattr(component, "videos", 0) and any(getattr(part, "opengl", False) for _, part in _parts(component, "config", inside=True)):
        found += [f"config.videos: {problem}; or set videos=0" for problem in _drawing() if not any(problem in known for known in found)]
    return found


def _missing_file(place: str, part: NamesFile) -> list[str]:
    from flowrl.cli.console import row, say
    from flowrl.errors import CheckpointError

    try:
        say(row(place, part.file()))
    except CheckpointError as error:
        return [f"{place}: {error}"]
    return []


def _drawing() -> list[str]:
    from flowrl.cli.console import row, say
    from robot.envs.check import EXTRAS, gl_problems, installed
    from robot.envs.offscreen import gl_back_end

    if not any(installed(extra) for extra in EXTRAS if any(library.module == "mujoco" for library in EXTRAS[extra])):
        return []
    problems = gl_problems()
    say(row("drawing", "fails" if problems else gl_back_end()))
    return problems


def _parts(component: Any, place: str, *, inside: bool = False) -> Iterator[tuple[str, Any]]:
    """The component and all that it is made of, with their places; what speaks for its own parts is opened only if asked for."""
    if not dataclasses.is_dataclass(component):
        return
    yield place, component
    if hasattr(component, "problems") and not inside:
        return
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        several = isinstance(value, (tuple, list))
        for index, inner in enumerate(value if several else [value]):
            yield from _parts(inner, f"{place}.{field.name}[{index}]" if several else f"{place}.{field.name}", inside=inside)
