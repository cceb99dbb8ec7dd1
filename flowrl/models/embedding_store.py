"""Prompt embeddings on disk: encoded once, also over several runs and processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from flowrl.errors import CheckpointError
from flowrl.rl import facts_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

__all__ = ["EmbeddingStore", "folder_fingerprint"]

logger = logging.getLogger(__name__)

_BLOCK, _BLOCKS = 4096, 64


class EmbeddingStore:
    """One safetensors file per text below ``folder/<hash of the encoder's identity>/``.

    A file comes into being by a rename, so that nobody sees a half of one; one that cannot be read all the same is written again.
    Processes may share the folder: two that encode the same text write the same file.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Open a store; nothing is written yet.

        Args:
            folder: For the embeddings of any number of models.
            identity: Everything that the embeddings depend on beside the text and its facts, as JSON can say it.
        """
        self._identity = json.dumps(identity, sort_keys=True, indent=2)
        self.folder = folder / _digest(self._identity)[:16]

    def __contains__(self, prompt: str) -> bool:
        """Whether there is a whole file for this text."""
        try:
            with safe_open(self._path(prompt), framework="pt"):
                return True
        except (OSError, SafetensorError):
            return False

    def read(self, prompt: str) -> dict[str, Tensor] | None:
        """The text's named tensors without a batch axis; None if there are none or their file is damaged."""
        path = self._path(prompt)
        try:
            return dict(load_file(path))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("%s cannot be read (%s); its text is encoded again", path, error)
            return None

    def write(self, prompt: str, row: Mapping[str, Tensor]) -> None:
        """Store a text's named tensors.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        path = self._path(prompt)
        scratch = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_identity()
            save_file({name: tensor.contiguous() for name, tensor in row.items()}, scratch, metadata={"text": str(prompt)})
            scratch.replace(path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise CheckpointError(
                f"cannot write a prompt's embedding to {path}: {error}; make room, or leave `embedding_cache` out to keep them in memory"
            ) from error

    def _path(self, prompt: str) -> Path:
        name = _digest(json.dumps([str(prompt), _facts(prompt)], sort_keys=True))
        return self.folder / name[:2] / f"{name}.safetensors"

    def _write_identity(self) -> None:
        """For the reader of the folder, who cannot undo a hash."""
        about = self.folder / "encoder.json"
        if not about.exists():
            scratch = about.with_suffix(f".{uuid.uuid4().hex}.tmp")
            scratch.write_text(self._identity, encoding="utf-8")
            scratch.replace(about)


def folder_fingerprint(folder: Path, parts: tuple[str, ...]) -> dict[str, str]:
    """What the files of a pipeline's parts are, wherever the folder is: their sizes and hashes.

    Of a large file 64 evenly spaced blocks of 4 KiB are hashed, which any training of its weights changes.

    Args:
        folder: Of the pipeline.
        parts: Names of subfolders; those that are not there are left out.
    """
    files = sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sampled_digest(path) for path in files}


def _sampled_digest(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        return _digest(str(size).encode() + b"".join(_blocks(file, size)))


def _blocks(file: Any, size: int) -> Iterator[bytes]:
    if size <= _BLOCK * _BLOCKS:
        yield file.read()
        return
    for number in range(_BLOCKS):
        file.seek(number * (size - _BLOCK) // (_BLOCKS - 1), os.SEEK_SET)
        yield file.read(_BLOCK)


def _facts(prompt: str) -> dict[str, Any]:
    """A prompt's facts; a fact that names a file comes with what changes when the file does."""
    return {name: _with_file(value) for name, value in facts_of(prompt).items()}


def _with_file(value: object) -> object:
    if isinstance(value, str) and len(value) < 1024 and Path(value).is_file():  # noqa: PLR2004 (longer than a path may be)
        status = Path(value).stat()
        return [value, status.st_size, status.st_mtime_ns]
    return value


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
