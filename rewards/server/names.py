"""Which names mean this machine, and what makes two rewards the same."""

from __future__ import annotations

import hashlib
import json
from ipaddress import ip_address
from typing import Any

from flowrl.train.describe import describe

__all__ = ["identity", "is_loopback"]

_BY_MACHINE = frozenset({"device", "dtype", "batch"})  # fields that may differ between servers of one reward


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def identity(reward: object) -> str:
    """The same for two rewards of the same configuration, wherever they run.

    Fields that say where and how a machine computes, such as ``device``, do not count; neither does what weight files hold.
    """
    text = json.dumps(_comparable(describe(reward)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items() if name not in _BY_MACHINE}
    return [_comparable(item) for item in value] if isinstance(value, list) else value
