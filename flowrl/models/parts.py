"""Whether a pipeline's folder holds all of its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

__all__ = ["check_parts"]

_WITHOUT_VOCABULARY = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"}


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
            "or write [null, null] there for a part that it can do without"
        )


def _has_vocabulary(folder: Path) -> bool:
    return not folder.is_dir() or any(file.name not in _WITHOUT_VOCABULARY for file in folder.iterdir())
