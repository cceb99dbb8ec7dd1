"""Components that are not flowrl's: ``target: my_package.module:MyReward`` and ``target: folder/my_file.py:MyReward``.

The colon says so. A package must be importable, that is installed or on ``PYTHONPATH``; the working directory is not searched, so that a
run resumes from anywhere. A file is loaded alone, once a process; a relative one lies in the config's own folder or else in the working
directory, and is recorded with its full path.

Such a target runs code. A config with a colon in a target is a program: read it, and the file that it names, before you run one that
somebody else wrote. A target without a colon never leaves flowrl's own packages.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.errors import ConfigError, close_match

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["find_user_class", "is_user_target", "locate_files", "user_target", "user_targets"]

_PREFIX = "flowrl_user_file_"


def is_user_target(name: object) -> bool:
    """Whether a ``target:`` names somebody else's code."""
    return isinstance(name, str) and ":" in name


def user_targets(config: Any) -> list[str]:
    """Every target in a config that names somebody else's code, in the order of the config."""
    if isinstance(config, Mapping):
        own = [config["target"]] if is_user_target(config.get("target")) else []
        return own + [name for value in config.values() for name in user_targets(value)]
    return [name for value in config for name in user_targets(value)] if isinstance(config, list | tuple) else []


def locate_files(config: Any, folder: Path) -> None:
    """Write the full path into every target that names a file, in place.

    Args:
        config: Nested dicts and lists; a target with an interpolation in it is left as it is.
        folder: The config's own, where a relative file is looked for first; the working directory is next.
    """
    if isinstance(config, dict):
        if is_user_target(config.get("target")):
            config["target"] = _located(config["target"], folder)
        for value in config.values():
            locate_files(value, folder)
    elif isinstance(config, list):
        for value in config:
            locate_files(value, folder)


def find_user_class(name: str, place: str) -> type:
    """Import what a target with a colon names.

    Args:
        name: ``package.module:Class`` or ``file.py:Class``.
        place: Dotted place of the target, for messages.

    Raises:
        ConfigError: If the module or file cannot be imported, has no such class, or the class takes arguments without being a dataclass.
    """
    where, _, kind = name.rpartition(":")
    if not where or not kind.isidentifier():
        raise ConfigError(f"{place}: {name!r} must read package.module:Class or file.py:Class")
    module = _file_module(where, place) if where.endswith(".py") else _package_module(where, place)
    found = getattr(module, kind, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__]
        what = "is not a class" if hasattr(module, kind) else "does not exist"
        raise ConfigError(f"{place}: {kind!r} {what} in {where}{close_match(kind, classes)}")
    if not is_dataclass(found) and _takes_arguments(found):
        raise ConfigError(
            f"{place}: {kind} takes arguments but is no dataclass, so a run could not record them; "
            "write it as @dataclass(frozen=True, kw_only=True) with its arguments as fields"
        )
    return found


def user_target(kind: type) -> str:
    """The target that names a class of somebody else's: what `find_user_class` finds it by.

    A class of the script that runs, ``__main__``, is named by the script's file.
    """
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    by_file = kind.__module__ == "__main__" or kind.__module__.startswith(_PREFIX)
    return f"{Path(file).resolve()}:{kind.__qualname__}" if by_file and file else f"{kind.__module__}:{kind.__qualname__}"


def _located(name: str, folder: Path) -> str:
    where, _, kind = name.rpartition(":")
    if not where.endswith(".py") or "${" in name:
        return name
    path = Path(where).expanduser()
    beside = folder / path
    return f"{(beside if beside.is_file() or not path.is_file() else path).resolve()}:{kind}"


def _package_module(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{place}: importing {name} failed: {_told(error, name)}") from error
        raise ConfigError(
            f"{place}: there is no module {error.name!r}; install its package (pip install -e FOLDER), put its folder on PYTHONPATH, "
            "or name the file: folder/file.py:Class"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{place}: importing {name} failed: {_told(error, name)}") from error


def _file_module(where: str, place: str) -> ModuleType:
    """Load a file, or return it if this process has it already."""
    path = Path(where).expanduser().resolve()
    name = f"{_PREFIX}{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ConfigError(
            f"{place}: there is no file {path}; a relative file is looked for in the config's folder and then in the working directory. "
            f"If it has moved, say where it is: {place.removeprefix('config.')}=FILE:CLASS"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{place}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: a dataclass looks its annotations up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"{place}: {path} cannot be imported: {_told(error, str(path))}") from error
    return module


def _takes_arguments(kind: type) -> bool:
    try:
        return bool(inspect.signature(kind).parameters)
    except ValueError:  # a class written in C
        return True


def _told(error: BaseException, name: str) -> str:
    """An error of somebody else's code in one line, with the line of code that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    last = frames[-1] if frames else None
    where = f" ({last.filename}, line {last.lineno})" if last and not isinstance(error, SyntaxError) else ""
    remedy = ""
    if isinstance(error, ModuleNotFoundError) and name.endswith(".py"):
        remedy = "; a file is loaded alone: what it imports must be installed or on PYTHONPATH"
    if isinstance(error, SystemExit):
        remedy = "; it ends the process when it is imported: put what it does under if __name__ == '__main__':"
    return f"{type(error).__name__}: {error}{where}{remedy}"
