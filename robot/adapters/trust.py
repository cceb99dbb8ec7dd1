"""Files that run code when they are loaded: refused unless the user vouches for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowrl.config.targets import fields_of, find_target
from flowrl.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["require_trust", "with_trust"]

_FIELD = "trust_checkpoint"


def require_trust(path: Path, *, trusted: bool, reason: str) -> None:
    """Refuse a file that runs code when it is loaded, unless the user vouches for it.

    Args:
        path: Of the file.
        trusted: Whether the user does.
        reason: Why loading runs code.

    Raises:
        ConfigError: If the user does not.
    """
    if not trusted:
        raise ConfigError(
            f"{path}: {reason}, so loading it runs whatever code its author put there. If you trust where it comes from, "
            f"set {_FIELD}: true (command line: --trust-checkpoint)"
        )


def with_trust(config: Any) -> Any:
    """A config in which every component that asks for trust has it: what ``--trust-checkpoint`` does.

    Args:
        config: Nested dicts, lists and scalars, as :func:`flowrl.config.load_config` gives them; left as it is.
    """
    if isinstance(config, Mapping):
        told = {key: with_trust(value) for key, value in config.items()}
        return {**told, _FIELD: True} if _asks(config.get("target")) else told
    return [with_trust(item) for item in config] if isinstance(config, list) else config


def _asks(target: object) -> bool:
    if target is None:
        return False
    try:
        return _FIELD in fields_of(find_target(target, "config")).by_name
    except ConfigError:  # building the config says what is wrong with it
        return False
