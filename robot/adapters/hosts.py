"""Dealing with a host library: importing it, and letting it encode."""

from __future__ import annotations

import importlib
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flowrl.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

__all__ = ["attribute", "check_file", "class_method", "first_query", "host_module", "replaced"]


class _QueryError(Exception):
    """Carries the arguments of the host's first query out of the host."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__("the host asked its network before it was expected to")
        self.arguments = arguments


def host_module(module: str, install: str) -> ModuleType:
    """Import a host library.

    Args:
        module: Dotted module name.
        install: How to get it, and what it cannot share an environment with.

    Raises:
        MissingExtraError: If it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # host libraries fail in many ways: broken torchvision, renamed diffusers classes, missing GL
        raise MissingExtraError(f"{module} cannot be imported ({type(error).__name__}: {error}); {install}") from error


def attribute(host: Any, name: str, expected: str) -> Any:
    """An attribute of a host's object, ``"model.denoise_step"`` style.

    Args:
        host: The object.
        name: Dotted name.
        expected: What kind of host has it, for the message.

    Raises:
        ValueError: If the host lacks it.
    """
    value = host
    for part in name.split("."):
        if not hasattr(value, part):
            raise ValueError(f"{type(host).__name__} has no {name}: it is not {expected}, or of a version whose names differ")
        value = getattr(value, part)
    return value


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an instance attribute stand before the class's own while the block runs.

    Args:
        owner: Any object with a ``__dict__``.
        name: Of the attribute.
        value: What stands there.
    """
    missing = object()
    before = vars(owner).get(name, missing)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if before is missing:
            del vars(owner)[name]
        else:
            vars(owner)[name] = before


@contextmanager
def class_method(owner: Any, name: str) -> Iterator[None]:
    """Let the class's own method run while the block runs, where the instance carries a compiled copy of it.

    Args:
        owner: Any object with a ``__dict__``.
        name: Of the method.
    """
    with replaced(owner, name, getattr(type(owner), name).__get__(owner)):
        yield


def first_query(owner: Any, method: str, call: Callable[[], Any]) -> dict[str, Any]:
    """Let the host encode: run its own inference up to its first call of ``owner.method``, and return that call's arguments.

    The host's own preprocessing and encoding produce the condition, without their code being repeated here, and nothing is sampled.

    Args:
        owner: Object whose method the host calls when the condition is ready.
        method: Its name.
        call: Starts the host's inference.

    Returns:
        Arguments by the names in the method's signature.

    Raises:
        ValueError: If the host finishes without calling it.
    """
    signature = inspect.signature(getattr(type(owner), method))

    def stop(*args: Any, **kwargs: Any) -> None:
        arguments = dict(signature.bind(owner, *args, **kwargs).arguments)
        arguments.pop(next(iter(signature.parameters)))
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
        raise _QueryError(arguments)

    with replaced(owner, method, stop):
        try:
            call()
        except _QueryError as query:
            return query.arguments
    raise ValueError(f"{type(owner).__name__} did not call {method}: this version of the host samples in another way")


def check_file(path: Path) -> Path:
    """The path, if it exists.

    Raises:
        CheckpointError: If it does not.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give the checkpoint's file or folder on this machine")
    return path
