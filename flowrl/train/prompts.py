"""Prompt files: UTF-8 text, one prompt a line, or JSON lines with facts beside each prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flowrl.config import asset_path
from flowrl.rl import Prompt

__all__ = ["load_prompts"]


def load_prompts(path: str | Path) -> list[str]:
    """Read the prompts of a file; blank lines are skipped, a byte order mark is dropped.

    In a file named ``*.jsonl`` every line is an object with a ``prompt``; its other entries are the prompt's facts, see
    :class:`flowrl.rl.Prompt`. A fact ``image`` is a picture's file, from the prompt file's folder unless it is absolute.

    Args:
        path: A file; ``assets/...`` is looked up among the bundled assets if there is no such file here.

    Raises:
        ValueError: If the file is missing, is not UTF-8, holds no prompt, or a line of JSON is no such object.
    """
    path = asset_path(str(path)) if str(path).startswith("assets/") and not Path(path).exists() else Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read the prompt file {path}: {error.strerror}; give a UTF-8 text file with one prompt a line") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8 text") from error
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    if not lines:
        raise ValueError(f"the prompt file {path} holds no prompt; write one prompt a line")
    if path.suffix != ".jsonl":
        return list(lines.values())
    return [_with_facts(line, path, number) for number, line in lines.items()]


def _with_facts(line: str, path: Path, number: int) -> Prompt:
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is no JSON ({error}); write an object with a 'prompt' on every line") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError(f"{path}, line {number} has no text named 'prompt'; write an object with a 'prompt' on every line")
    facts = {name: value for name, value in entry.items() if name != "prompt"}
    if isinstance(facts.get("image"), str):
        facts["image"] = str(path.parent / facts["image"])
    return Prompt(entry["prompt"], facts=facts)
