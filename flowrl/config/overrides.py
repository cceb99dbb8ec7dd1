"""Overrides from the command line: ``a.b.0.c=value`` changes what is there, and never makes up a key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowrl.config.targets import fields_of, find_target
from flowrl.config.user_code import locate_files
from flowrl.errors import ConfigError, close_match

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["apply_overrides", "without_base_60"]

_BASE_60 = re.compile(r"\d+(:\d+)+")


def apply_overrides(config: dict[str, Any], overrides: Sequence[str], folder: Path) -> None:
    """Apply overrides in their order, in place.

    Args:
        config: Nested dicts and lists; interpolations are still unresolved text.
        overrides: ``key=value`` each; the value is read as YAML and replaces what was there, mappings too.
        folder: Where files that a ``target:`` names are looked for first.

    Raises:
        ConfigError: If one is not ``key=value``, its value is not YAML, or its key is neither in the config nor a field of the component
            there.
    """
    locate_files(config, folder)
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"override {text!r} must read key=value, for example sampler.group_size=8")
        _apply(config, key.strip().split("."), _parse(text, raw))
        locate_files(config, folder)


def without_base_60(text: str) -> str:
    """The same YAML with quotes around seeds such as ``5:20``, which YAML 1.1 would read as a number in base 60.

    Args:
        text: YAML.

    Raises:
        YAMLError: If it is none.
    """
    tokens = [token for token in yaml.scan(text) if isinstance(token, yaml.ScalarToken) and token.plain and _BASE_60.fullmatch(token.value)]
    for token in reversed(tokens):
        text = f'{text[: token.start_mark.index]}"{token.value}"{text[token.end_mark.index :]}'
    return text


def _parse(text: str, raw: str) -> Any:
    if not raw.strip():
        raise ConfigError(f"override {text!r} has no value; write {text}null for none, or {text}\"''\" for empty text")
    try:
        return OmegaConf.to_container(OmegaConf.create(without_base_60(f"value: {raw}")), resolve=False)["value"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = getattr(error, "problem", None) or error
        raise ConfigError(f"the value of override {text!r} is not YAML ({reason}); put text with a colon or bracket in quotes") from error


def _apply(config: dict[str, Any], parts: list[str], value: Any) -> None:
    node: Any = config
    place = "config"
    for part in parts[:-1]:
        key = _key(node, part, place)
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node, place = node[key], f"{place}.{part}"
    node[_key(node, parts[-1], place)] = value


def _key(node: Any, part: str, place: str) -> str | int:
    """Return what indexes ``node``, or raise because ``node`` can have no such key."""
    if isinstance(node, list):
        return _index(node, part, place)
    if not isinstance(node, dict):
        raise ConfigError(f"{place}.{part}: {place} is {node!r} and has no keys; replace it as a whole: {_option(place)}={{...}}")
    if part in node or (part == "target" and not node):
        return part
    if "target" in node:
        component = find_target(node["target"], f"{place}.target")
        fields = fields_of(component)
        if part in fields.by_name or fields.open:
            return part
        raise ConfigError(f"{place}.{part}: {component.__name__} has no such field{close_match(part, fields.by_name)}")
    if not node:
        raise ConfigError(f"{place}.{part}: {place} is not set; say first what it is: {_option(place)}.target=...")
    raise ConfigError(f"{place}.{part}: no such key{close_match(part, map(str, node))}")


def _option(place: str) -> str:
    return place.removeprefix("config.")


def _index(node: list[Any], part: str, place: str) -> int:
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    allowed = f"0 to {len(node) - 1}" if node else "none, the list is empty"
    raise ConfigError(f"{place}.{part}: {place} is a list of {len(node)}; allowed here: {allowed}")
