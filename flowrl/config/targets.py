"""What a ``target:`` names: a class of one of four packages, or by a colon one of somebody else's, and the fields it takes."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import typing
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from flowrl.config.user_code import find_user_class, is_user_target
from flowrl.errors import ConfigError, close_match

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["ROOTS", "Field", "Fields", "fields_of", "find_target"]

ROOTS = ("flowrl", "samplers", "rewards", "robot")
_OWNER = "flowrl"


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a component.

    Attributes:
        hint: Its type hint, or ``Any`` where the hint cannot be resolved at run time.
        required: Whether it has no default.
    """

    hint: Any
    required: bool


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What a component takes.

    Attributes:
        by_name: Its fields, in their order.
        open: Whether it takes further keywords.
    """

    by_name: Mapping[str, Field]
    open: bool


def find_target(name: object, place: str) -> type:
    """Return the class that a ``target:`` names.

    Args:
        name: ``package.module.Class``, a public name under one of `ROOTS`; or with a colon what `find_user_class` takes.
        place: Dotted place of the target, for messages.

    Raises:
        ConfigError: If the package is not one of the four or is another distribution's, or the name is unknown, private or no class of
            ours; with a colon, if it cannot be imported or is no class.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{place}: must be a dotted name such as 'samplers.SDESampler', got {name!r}")
    if is_user_target(name):
        return find_user_class(name, place)
    root, *middle = name.split(".")
    if root not in ROOTS:
        raise ConfigError(
            f"{place}: {name!r} is outside the packages {', '.join(ROOTS)}; a class of your own is named with a colon: "
            "'my_package.module:MyReward' or 'folder/file.py:MyReward'"
        )
    module = _import(root, place)
    _refuse_foreign(module, root, place)
    for part in middle[:-1]:
        if part not in _submodules(module):
            raise ConfigError(f"{place}: {module.__name__} has no module {part!r}{close_match(part, _submodules(module))}")
        module = _import(f"{module.__name__}.{part}", place)
    return _component(module, middle[-1] if middle else "", place)


def fields_of(component: type) -> Fields:
    """Return the fields of a component: those of a dataclass, or the arguments of another class's ``__init__``."""
    hints = _hints(component)
    parameters = inspect.signature(component).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return Fields(
        by_name={p.name: Field(hint=hints.get(p.name, Any), required=p.default is p.empty) for p in named},
        open=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _import(module: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{place}: {module} cannot be imported: {error}") from error


def _refuse_foreign(module: ModuleType, root: str, place: str) -> None:
    """Raise if a package of that name belongs to somebody else: robotframework also ships ``robot``."""
    if getattr(module, "OWNER", None) == _OWNER:
        return
    where = getattr(module, "__file__", None) or ", ".join(module.__path__)
    owners = importlib.metadata.packages_distributions().get(root, [])
    foreign = sorted({owner for owner in owners if owner != "flowrl-torch"})
    belongs = f" (installed by {', '.join(foreign)})" if foreign else ""
    remedy = f"pip uninstall {' '.join(foreign)}" if foreign else f"move {where} away"
    raise ConfigError(
        f"{place}: the package {root!r} found first is not {_OWNER}'s but {where}{belongs}; "
        f"{remedy}, or install flowrl-torch into an environment of its own"
    )


def _component(module: ModuleType, name: str, place: str) -> type:
    names = _components(module)
    value = getattr(module, name, None) if name in names else None
    if isinstance(value, type):
        return value
    options = [*names, *_submodules(module)]
    if inspect.isfunction(getattr(module, name, None)):
        raise ConfigError(f"{place}: {module.__name__}.{name} is a function; a target names a class{close_match('', names)}")
    raise ConfigError(f"{place}: {module.__name__} has no component {name!r}{close_match(name, options)}")


def _components(module: ModuleType) -> list[str]:
    """Return the public classes of a module that are defined under `ROOTS`; what it merely imports from elsewhere is no target."""
    public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    values = {name: getattr(module, name, None) for name in public}
    return [name for name, value in values.items() if isinstance(value, type) and value.__module__.split(".")[0] in ROOTS]


def _submodules(module: ModuleType) -> list[str]:
    return [info.name for info in pkgutil.iter_modules(getattr(module, "__path__", [])) if not info.name.startswith("_")]


def _hints(component: type) -> dict[str, Any]:
    holders = [component, *component.__mro__] if is_dataclass(component) else [component.__init__]  # type: ignore[misc]
    try:
        return typing.get_type_hints(holders[0])
    except (NameError, TypeError, AttributeError):
        annotations = {name: (hint, holder) for holder in reversed(holders) for name, hint in inspect.get_annotations(holder).items()}
        return {name: _hint(hint, holder.__module__) for name, (hint, holder) in annotations.items()}


def _hint(annotation: object, module: str) -> Any:
    """Resolve one annotation; a name that only a type checker imports leaves this one field unchecked, not the others."""
    probe = type("Probe", (), {"__annotations__": {"field": annotation}, "__module__": module})
    try:
        return typing.get_type_hints(probe)["field"]
    except (NameError, TypeError, AttributeError):
        return Any
