"""Checkpoints that are whole or not there: written beside, checked, then renamed into place."""

from __future__ import annotations

import json
import logging
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CheckpointFolder", "check_complete"]

MANIFEST = "manifest.json"
_STAGING = ".writing-"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """The checkpoints of one run: ``update_000010/`` and so on.

    Attributes:
        root: ``RUN/checkpoints``, on a disk that all processes share.
        keep: How many of the newest to keep, at least 1.

    Raises:
        ValueError: If ``keep`` < 1.
    """

    root: Path
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}; the last good checkpoint is never deleted")

    def path(self, update: int) -> Path:
        """The folder of the checkpoint after so many updates."""
        return self.root / f"update_{update:06d}"

    def all(self) -> list[Path]:
        """Every checkpoint, oldest first; what a crash left half-written is not among them."""
        return sorted((path for path in self.root.glob("update_*") if path.is_dir()), key=_age)

    def latest(self) -> Path | None:
        """The newest checkpoint that is complete, or None where there is none at all; newer damaged ones are named in a warning.

        Raises:
            CheckpointError: If checkpoints are there and not one of them is complete.
        """
        problems = []
        for path in reversed(self.all()):
            try:
                check_complete(path)
            except CheckpointError as error:
                problems.append(str(error))
            else:
                if problems:
                    logger.warning("%s; taking %s", "; ".join(problems), path)
                return path
        if problems:
            raise CheckpointError(f"no complete checkpoint to go on from: {'; '.join(problems)}. Start again in another run_dir")
        return None

    @contextmanager
    def staging(self, update: int, *, is_main: bool = True) -> Iterator[Path]:
        """A folder to write into; it becomes the checkpoint when the block ends, and vanishes if the block fails.

        Args:
            update: Number of updates done.
            is_main: Whether this process makes, publishes and cleans up; the others only write into the folder.

        Raises:
            CheckpointError: If the disk is full or not writable; earlier checkpoints stay as they were.
        """
        folder = self.root / f"{_STAGING}{update:06d}"
        try:
            if is_main:
                self._clean()
                folder.mkdir(parents=True)
            yield folder
            if is_main:
                self._publish(folder, update)
        except (OSError, CheckpointError) as error:
            raise CheckpointError(self._failure(folder, error)) from error
        except RuntimeError as error:  # torch's own writer reports a full disk so
            if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
                raise
            raise CheckpointError(self._failure(folder, error)) from error
        finally:
            if is_main:
                self._clean()

    def _clean(self) -> None:
        for leftover in self.root.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _failure(self, folder: Path, error: Exception) -> str:
        good = [path for path in self.all() if _is_complete(path)]
        kept = f"the last good checkpoint is {good[-1]}" if good else "there is no earlier checkpoint"
        return f"could not write a checkpoint into {folder}: {error}; {kept}. Free some space and run again with --resume"

    def _publish(self, folder: Path, update: int) -> None:
        files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
        (folder / MANIFEST).write_text(json.dumps({"update": update, "files": files}, indent=1), encoding="utf-8")
        for path in (*folder.rglob("*"), folder):
            _sync(path)
        target = self.path(update)
        if target.exists():
            target.replace(self.root / f"{_STAGING}replaced")
        folder.replace(target)
        _sync(self.root)
        # Newer ones are damaged, or the run would have gone on from them: they must not push out good ones.
        for old in [path for path in self.all() if _age(path) <= _age(target)][: -self.keep]:
            shutil.rmtree(old)


def _age(path: Path) -> tuple[int, str]:
    return len(path.name), path.name  # from update 1 000 000 on names are longer


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_complete(path: Path) -> int:
    """Check a checkpoint against its manifest.

    Returns:
        The number of updates it was taken after.

    Raises:
        CheckpointError: If it is missing, has no readable manifest, or a file is missing or of another size.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it has no {MANIFEST}; give a folder such as RUN/checkpoints/update_000010")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        files, update = dict(content["files"]), int(content["update"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {MANIFEST} cannot be read ({error}); use an earlier one") from error
    for name, size in files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise CheckpointError(f"the checkpoint {path} is damaged: {name} {what}; use an earlier one")
    return update


def _is_complete(path: Path) -> bool:
    try:
        check_complete(path)
    except CheckpointError:
        return False
    return True
