"""What flowrl raises, and the two helpers that make a message useful."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

__all__ = [
    "CheckpointError",
    "ConfigError",
    "FlowrlError",
    "MissingExtraError",
    "NonFiniteError",
    "RatioGateError",
    "RewardError",
    "close_match",
    "require",
]


class FlowrlError(Exception):
    """Base of every error that flowrl raises on purpose."""


class ConfigError(FlowrlError, ValueError):
    """A configuration names something that does not exist or has the wrong type."""


class CheckpointError(FlowrlError, RuntimeError):
    """A checkpoint is missing, truncated, of another run, or could not be written."""


class NonFiniteError(FlowrlError, RuntimeError):
    """A loss, reward or gradient is NaN or infinite."""


class RewardError(FlowrlError, RuntimeError):
    """A reward could not score: its server is gone, its weights are missing, its answer makes no sense."""


class RatioGateError(FlowrlError, RuntimeError):
    """The recomputed policy ratio is not 1 before the first update."""


class MissingExtraError(FlowrlError, ImportError):
    """An optional dependency is not installed."""


def close_match(name: str, options: Iterable[str]) -> str:
    """Suggest what was meant: ``"; did you mean 'noise_level'?"``, else the allowed names.

    Args:
        name: What was given.
        options: What is allowed.
    """
    names = sorted(options)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; allowed: {', '.join(names)}" if names else "; none are allowed here"


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: Dotted module name.
        extra: The extra of the distribution that installs it.

    Raises:
        MissingExtraError: If it cannot be imported; the message gives the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{module} cannot be imported ({error}); install it with: pip install 'flowrl-torch[{extra}]'") from error
