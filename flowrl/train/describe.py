"""A component as the configuration that would build it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from flowrl.config.targets import ROOTS
from flowrl.config.user_code import user_target

__all__ = ["describe", "differences"]


def describe(component: object) -> Any:
    """The configuration of a component: ``target`` and every field, defaults too; lists and numbers stay.

    For a dataclass ``instantiate(describe(component))`` builds it again, so this is what a run writes as ``config.yaml``. Of anything
    else only the class is known.
    """
    if is_dataclass(component) and not isinstance(component, type):
        kind = type(component)
        return {"target": _public_name(kind)} | {f.name: describe(getattr(component, f.name)) for f in fields(component) if f.init}
    if isinstance(component, Mapping):
        return {str(key): describe(value) for key, value in component.items()}
    if isinstance(component, list | tuple | range):
        return [describe(value) for value in component]
    if component is None or isinstance(component, bool | int | float | str):
        return component
    return str(component) if isinstance(component, Path) else {"target": _public_name(type(component))}


def _public_name(kind: type) -> str:
    """The shortest package that exports the class: ``samplers.SDESampler``, not ``samplers.sde.SDESampler``; a user's class has a colon."""
    parts = kind.__module__.split(".")
    if parts[0] not in ROOTS:
        return user_target(kind)
    for depth in range(1, len(parts)):
        package = ".".join(parts[:depth])
        if getattr(sys.modules.get(package), kind.__name__, None) is kind:
            return f"{package}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Where two configurations differ, one line each: ``sampler.group_size: 12 -> 8``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))]
    return [] if old == new else [f"{place}: {old} -> {new}"]
