"""Whether a YAML value fits a type hint, after the coercions that YAML makes necessary."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Protocol, Union, get_args, get_origin

from beartype.door import is_bearable
from beartype.roar import BeartypeException

__all__ = ["Misfit", "fit", "hint_name"]

_SEQUENCES = (list, Sequence, Collection, Iterable)
_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))  # what YAML itself can give


class Misfit(TypeError):  # noqa: N818  (never leaves flowrl.config)
    """A value that does not fit its hint; the message is a remedy, or empty."""


def fit(value: Any, hint: Any) -> Any:
    """Return the value as the hint wants it.

    Integers become floats, text that is a number (plain YAML reads ``1e-4`` as text) becomes a float, text becomes a ``Path`` and lists
    become tuples, each only where the hint asks for it. Nothing else is converted; ``true`` is no number.

    Args:
        value: What YAML gave, or a component already built.
        hint: A resolved type hint; protocols are checked by their members, and what cannot be checked at run time is accepted.

    Raises:
        Misfit: If the value does not fit.
    """
    if get_origin(hint) in (Union, UnionType):
        return _fit_union(value, get_args(hint))
    if hint in (Any, object):
        return value
    for kind, fitter in _FITTERS.items():
        if isinstance(value, kind):
            return fitter(value, hint)
    return _checked(value, hint)


def hint_name(hint: Any) -> str:
    """Return a hint as a reader would write it, without module names."""
    text = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)


def _fit_union(value: Any, arms: tuple[Any, ...]) -> Any:
    fitted = []
    remedy = ""
    for arm in arms:
        try:
            fitted.append(fit(value, arm))
        except Misfit as misfit:
            remedy = remedy or str(misfit)
    if not fitted:
        raise Misfit(remedy)
    return next((result for result in fitted if type(result) is type(value)), fitted[0])


def _fit_sequence(value: list[Any] | tuple[Any, ...], hint: Any) -> Any:
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind is tuple:
        return _fit_tuple(value, args)
    if kind in _SEQUENCES:
        items = [fit(item, args[0] if args else Any) for item in value]
        return items if kind is list else tuple(items)
    return _checked(value, hint)


def _fit_tuple(value: list[Any] | tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not args:
        return tuple(value)
    hints = args[:1] * len(value) if args[-1] is Ellipsis else args
    if len(hints) != len(value):
        raise Misfit(f"; it takes {len(hints)} values")
    return tuple(fit(item, hint) for item, hint in zip(value, hints, strict=True))


def _fit_mapping(value: dict[Any, Any], hint: Any) -> Any:
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind not in (dict, Mapping):
        return _checked(value, hint)
    key_hint, value_hint = args or (Any, Any)
    return {fit(key, key_hint): fit(item, value_hint) for key, item in value.items()}


def _fit_text(value: str, hint: Any) -> Any:
    if hint is float and re.fullmatch(r"[-+]?[\d._]+(e[-+]?\d+)?", value, re.IGNORECASE):
        try:
            return float(value)
        except ValueError:
            raise Misfit from None
    if hint is Path:
        return Path(value)
    if (get_origin(hint) or hint) in _SEQUENCES:  # to Python, text is a sequence of texts
        raise Misfit("; write a list: [...]")
    return _checked(value, hint)


def _fit_int(value: int, hint: Any) -> Any:
    return float(value) if hint is float else _checked(value, hint)


def _fit_bool(value: bool, hint: Any) -> bool:  # noqa: FBT001
    if hint in (int, float):
        raise Misfit("; true and false are not numbers")
    return bool(_checked(value, hint))


_FITTERS: dict[type | tuple[type, ...], Callable[[Any, Any], Any]] = {  # bool before int: it is one to Python
    bool: _fit_bool,
    int: _fit_int,
    str: _fit_text,
    (list, tuple): _fit_sequence,
    dict: _fit_mapping,
}


def _checked(value: Any, hint: Any) -> Any:
    """Return the value unchanged, or raise."""
    if _is_protocol(hint):
        _check_members(value, hint)
        return value
    try:
        fits = is_bearable(value, hint)
    except BeartypeException:  # a hint that cannot be checked at run time
        return value
    if not fits:
        raise Misfit("; a component is written as a mapping with 'target:'" if isinstance(value, dict) else "")
    return value


def _is_protocol(hint: Any) -> bool:
    return isinstance(hint, type) and getattr(hint, "_is_protocol", False)


def _check_members(value: Any, protocol: type) -> None:
    if isinstance(value, _PLAIN):
        raise Misfit("; a component is written as a mapping with 'target:'")
    if hasattr(type(value), "__getattr__"):  # forwards to something else: what it has shows only in use
        return
    missing = [name for name in _members(protocol) if inspect.getattr_static(value, name, None) is None]
    if missing:
        raise Misfit(f"; it has no {', '.join(map(repr, missing))}")


def _members(protocol: type) -> list[str]:
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False) and base is not Protocol]
    names = {name for base in bases for name in [*vars(base), *inspect.get_annotations(base)]}
    return sorted(name for name in names if name == "__call__" or not name.startswith("_"))
