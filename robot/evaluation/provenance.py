"""What a run was made of: checkpoints by their hash, the revision of the code, and whether a resumed run is still the same."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from flowrl.errors import CheckpointError, ConfigError
from flowrl.train.describe import differences
from robot.learning.files import NamesFile

__all__ = ["checkpoint_hashes", "git_revision", "refuse_another_run", "sha256_of"]

_GIT_S = 10.0
_FREE = ("run_dir", "rows", "workers", "videos", "seeds", "timeout_s", "device", "against")  # none decides how an episode goes


def checkpoint_hashes(source: object) -> dict[str, str]:
    """The checkpoints that a component names at any depth, with their SHA-256: policy files, and whatever else is a path to something.

    Args:
        source: Of a policy, or anything else made of dataclasses.

    Raises:
        CheckpointError: If a policy file does not exist.
    """
    return {name: sha256_of(path) for name, path in _paths(source)}


def sha256_of(path: Path) -> str:
    """Of a file's content, or of a folder's files with their relative names, in sorted order."""
    if path.is_dir():
        whole = hashlib.sha256()
        for file in sorted(item for item in path.rglob("*") if item.is_file()):
            whole.update(f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n".encode())
        return whole.hexdigest()
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def git_revision() -> str | None:
    """The commit of the clone that this code runs from, with ``-dirty`` if files differ; None for an installed package."""
    clone = Path(__file__).parents[2]
    if not (clone / "pyproject.toml").is_file():
        return None
    revision = _git(clone, "rev-parse", "HEAD")
    return f"{revision}-dirty" if revision and _git(clone, "status", "--porcelain", "--untracked-files=no") else revision


def refuse_another_run(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Make sure that a resumed run evaluates the same policy in the same environment.

    Args:
        folder: Of the run, for the message.
        before: ``config`` and ``checkpoints`` when it began.
        now: The same now.

    Raises:
        ConfigError: If a setting changed that decides how an episode goes.
        CheckpointError: If the content of a checkpoint did.
    """
    old, new = ({key: value for key, value in part["config"].items() if key not in _FREE} for part in (before, now))
    if changed := differences(old, new):
        raise ConfigError(f"{folder} was begun with other settings: {'; '.join(changed)}; choose another run_dir for them")
    if changed := differences(before["checkpoints"], now["checkpoints"]):
        raise CheckpointError(
            f"checkpoints changed since {folder} was begun (SHA-256: {'; '.join(changed)}); the episodes of one run must be of the same "
            "policy, so choose another run_dir"
        )


def _paths(source: object) -> Iterator[tuple[str, Path]]:
    """As written in the config, and as found."""
    known = ""
    if isinstance(source, NamesFile):
        known = "path"
        yield str(source.path), source.file()
    if is_dataclass(source) and not isinstance(source, type):
        for item in (item for item in fields(source) if item.name != known):
            value = getattr(source, item.name, None)
            if (isinstance(value, Path) or (item.name == "path" and isinstance(value, str))) and Path(value).exists():
                yield str(value), Path(value)
            else:
                yield from _paths(value)
    elif isinstance(source, list | tuple | Mapping):
        for value in source.values() if isinstance(source, Mapping) else source:
            yield from _paths(value)


def _git(clone: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True, text=True, timeout=_GIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
