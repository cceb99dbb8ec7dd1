"""The steps after the last stochastic one: a field may offer a cheaper one for them.

They only make the sample that is rewarded, so that a field which is almost the policy's own will do, as long as no
log-probability depends on it.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowrl.flow.field import VelocityField

__all__ = ["has_tail", "tail_of"]


def has_tail(field: object) -> bool:
    """Whether a field, or one that it wraps, offers another for tails: by an attribute ``tail`` that is not None."""
    return getattr(field, "tail", None) is not None or any(has_tail(inner) for inner in _wrapped(field).values())


@contextmanager
def tail_of(field: VelocityField) -> Iterator[VelocityField]:
    """The field for one tail: inside this context it is called with the same rows in the same order, at falling times.

    What it remembers between its calls ends with the context. A field that offers no other is its own.

    Args:
        field: Its attribute ``tail``, if it has one, returns a context like this one. A dataclass that wraps such a field,
            guidance for example, wraps that field's tail.
    """
    with ExitStack() as stack:
        yield _entered(field, stack, {})


def _entered(field: Any, stack: ExitStack, known: dict[int, Any]) -> Any:
    """The field's tail, open on the stack; a field that is wrapped in several places has one."""
    if id(field) not in known:
        inner = {name: value for name, value in _wrapped(field).items() if has_tail(value)}
        if getattr(field, "tail", None) is not None:
            known[id(field)] = stack.enter_context(field.tail())
        else:
            known[id(field)] = replace(field, **{name: _entered(value, stack, known) for name, value in inner.items()}) if inner else field
    return known[id(field)]


def _wrapped(field: object) -> dict[str, Any]:
    """The fields that a dataclass holds."""
    if not is_dataclass(field) or isinstance(field, type):
        return {}
    values = {entry.name: getattr(field, entry.name) for entry in fields(field)}
    return {name: value for name, value in values.items() if callable(value) and is_dataclass(value)}
