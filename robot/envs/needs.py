"""Whether a library that an environment needs is installed, and in a version that works."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

__all__ = ["library_problems"]


def library_problems(module: str, extra: str, *, distribution: str = "", at_least: str = "0", below: str = "") -> list[str]:
    """What is wrong with one library, with the remedy; empty if nothing is. The library is not imported.

    Args:
        module: Its import name.
        extra: Our extra that installs it.
        distribution: Its name for pip, if it differs.
        at_least: Oldest version that works.
        below: First version that does not; empty if none is known.
    """
    name = distribution or module
    remedy = f"pip install 'flowrl-torch[{extra}]'"
    try:
        found = version(name) if find_spec(module) else None
    except (PackageNotFoundError, ValueError):
        found = None
    if found is None:
        return [f"{name} is not installed; install it with: {remedy}"]
    if _numbers(found) < _numbers(at_least) or (below and _numbers(found) >= _numbers(below)):
        wanted = f">={at_least}" + (f",<{below}" if below else "")
        return [f"{name} {found} does not work here, it takes {wanted}; install it with: pip install '{name}{wanted}'"]
    return []


def _numbers(text: str) -> tuple[int, ...]:
    parts = []
    for part in text.split("."):
        digits = part[: next((index for index, letter in enumerate(part) if not letter.isdigit()), len(part))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)
