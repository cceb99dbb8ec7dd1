"""Where a pipeline is, and whether its folder holds all of its parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["check_parts", "pipeline_config", "resolve_path"]

_WITHOUT_VOCABULARY = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"}


def resolve_path(path: str) -> str:
    """A local folder as it is, ``assets/...`` as the bundled folder, anything of the form ``owner/name`` as a model hub's id.

    Raises:
        CheckpointError: If it is none of these.
    """
    if Path(path).expanduser().is_dir():
        return str(Path(path).expanduser())
    if path.startswith("assets/"):
        from flowrl.config import asset_path

        return str(asset_path(path.removeprefix("assets/")))
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path):
        raise CheckpointError(f"no such folder: {path!r}; give a local folder, assets/models/..., or the id owner/name of a model hub")
    return path


def pipeline_config(path: str) -> dict[str, Any]:
    """The ``model_index.json`` of a pipeline: its class under ``_class_name``, and where each part is from.

    Args:
        path: See :func:`resolve_path`.

    Raises:
        CheckpointError: If there is none, or it cannot be read.
    """
    import diffusers

    try:
        return dict(diffusers.DiffusionPipeline.load_config(resolve_path(path)))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load {path}: {error}; it must be a diffusers pipeline saved whole, as safetensors") from error


def check_parts(folder: Path, parts: Mapping[str, Any], unneeded: Collection[str] = ()) -> None:
    """Refuse a folder that lacks what its ``model_index.json`` names.

    The libraries would refuse some parts in words that do not name them, and make a tokenizer out of nothing, which takes every word for
    the same.

    Args:
        folder: Of the pipeline.
        parts: Its ``model_index.json``.
        unneeded: Parts that may be missing.

    Raises:
        CheckpointError: If a part's folder, or a tokenizer's vocabulary, is not there.
    """
    named = [name for name, where in parts.items() if isinstance(where, list | tuple) and where[0] is not None and name not in unneeded]
    missing = [name for name in named if not (folder / name).is_dir()]
    missing += [f"{name}'s vocabulary" for name in named if name.startswith("tokenizer") and not _has_vocabulary(folder / name)]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}, which its model_index.json names; copy or download the pipeline whole, "
            "or write [null, null] there for a part that it can do without, such as Stable Diffusion 3's T5"
        )


def _has_vocabulary(folder: Path) -> bool:
    return not folder.is_dir() or any(file.name not in _WITHOUT_VOCABULARY for file in folder.iterdir())
