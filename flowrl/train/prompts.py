"""Prompt files, the user's own and the bundled ones."""

from pathlib import Path

from flowrl.config import asset_path
from flowrl.train.prompt_sets import read_prompts

__all__ = ["load_prompts"]


def load_prompts(path: str | Path) -> list[str]:
    """Read the prompts of a file or folder, see :func:`flowrl.train.prompt_sets.read_prompts`; a byte order mark is dropped.

    A line of a ``*.jsonl`` file is an object with a ``prompt``; its other entries are the prompt's facts, see
    :class:`flowrl.rl.Prompt`. A fact ``image`` is a picture's file, from the prompt file's folder unless it is absolute.

    Args:
        path: A file or folder; ``assets/...`` is looked up among the bundled assets if there is no such file here.

    Raises:
        ValueError: If it is missing, is not UTF-8, holds no prompt, or is not what its ending says.
    """
    bundled = str(path).startswith("assets/") and not Path(path).exists()
    return read_prompts(asset_path(str(path)) if bundled else Path(path))
