"""Build components from nested mappings: a mapping with ``target:`` becomes an object, everything else stays what it is."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from flowrl.config.fit import Misfit, fit, hint_name
from flowrl.config.targets import fields_of, find_target
from flowrl.config.user_code import user_targets
from flowrl.errors import ConfigError, FlowrlError, close_match

__all__ = ["instantiate", "instantiate_data", "validate"]

_BROKEN = object()  # stands for a value whose errors are already noted


def instantiate(config: Any, place: str = "config") -> Any:
    """Build what a config describes.

    Args:
        config: Nested dicts, lists and scalars. A mapping with ``target: package.Class`` becomes that class called with its other keys,
            innermost first; the packages are flowrl, samplers, rewards and robot. ``target: package.module:Class`` and
            ``target: file.py:Class`` run code of somebody else's; see `flowrl.config.user_code`. Any other mapping becomes a dict.
        place: Where the config stands, for messages.

    Raises:
        ConfigError: If anything in it is wrong; the message lists every error with its dotted place, one a line.
    """
    builder = _Builder()
    built = builder.build(config, place)
    if builder.errors:
        raise ConfigError("\n".join(builder.errors)) from builder.cause
    return built


def instantiate_data(config: Any, place: str = "config") -> Any:
    """Build what a file that is data describes, such as the card in a policy's weights: nothing but flowrl's own classes.

    Args:
        config: As `instantiate` takes it.
        place: Where it stands, for messages.

    Raises:
        ConfigError: If a target names code outside flowrl, or anything that `instantiate` finds.
    """
    if foreign := user_targets(config):
        raise ConfigError(f"{place}: {', '.join(map(repr, foreign))} is outside the packages of flowrl; a file of weights may not run code")
    return instantiate(config, place)


def validate(config: Any, place: str = "config") -> list[str]:
    """Return every error that `instantiate` would find, each with its dotted place; an empty list means that it builds."""
    builder = _Builder()
    builder.build(config, place)
    return builder.errors


class _Builder:
    """Builds depth first and notes errors instead of stopping at the first."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.cause: Exception | None = None

    def build(self, node: Any, place: str) -> Any:
        """Return the built node, or ``_BROKEN`` after noting why."""
        if isinstance(node, Mapping):
            return self._component(node, place) if "target" in node else self._mapping(node, place)
        if isinstance(node, list | tuple):
            items = [self.build(item, f"{place}.{index}") for index, item in enumerate(node)]
            return _BROKEN if any(item is _BROKEN for item in items) else items
        return node

    def _mapping(self, node: Mapping[Any, Any], place: str) -> Any:
        items = {key: self.build(value, f"{place}.{key}") for key, value in node.items()}
        return _BROKEN if any(value is _BROKEN for value in items.values()) else items

    def _component(self, node: Mapping[Any, Any], place: str) -> Any:
        noted = len(self.errors)
        values = {key: self.build(value, f"{place}.{key}") for key, value in node.items() if key != "target"}
        try:
            component = find_target(node["target"], f"{place}.target")
        except ConfigError as error:
            return self._note(str(error), error)
        arguments = self._arguments(component, values, place)
        if len(self.errors) > noted:
            return _BROKEN
        try:
            return component(**arguments)
        except (ValueError, TypeError, OSError, FlowrlError) as error:
            return self._note(f"{place}: {error}", error)

    def _arguments(self, component: type, values: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the values as the component's hints want them; note unknown, missing and ill-typed ones."""
        fields = fields_of(component)
        arguments = {}
        for key, value in values.items():
            field = fields.by_name.get(key)
            if field is not None and value is not _BROKEN:
                arguments[key] = self._fit(value, field.hint, component, f"{place}.{key}")
            elif field is None and fields.open:
                arguments[key] = value
            elif field is None:
                self._note(f"{place}.{key}: {component.__name__} has no such field{close_match(str(key), fields.by_name)}")
        missing = [name for name, field in fields.by_name.items() if field.required and name not in values]
        if missing:
            self._note(f"{place}: {component.__name__} needs {', '.join(map(repr, missing))}")
        return arguments

    def _fit(self, value: Any, hint: Any, component: type, place: str) -> Any:
        try:
            return fit(value, hint)
        except Misfit as misfit:
            given = f"{reprlib.repr(value)} ({type(value).__name__})"
            return self._note(f"{place}: {component.__name__} expects {hint_name(hint)}, got {given}{misfit}")

    def _note(self, message: str, cause: Exception | None = None) -> Any:
        self.errors.append(message)
        self.cause = self.cause or cause
        return _BROKEN
