"""Readers of the prompt files that users bring: published benchmarks in their own formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.errors import require
from flowrl.rl import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["READERS", "read_prompts"]

TEXT_NAMES = ("prompt", "prompts", "caption", "text")
"""What files call the text: HPDv2 and GenEval ``prompt``, DrawBench ``Prompts``, PickScore's Pick-a-Pic ``caption``."""

FACT_NAMES = ("category", "challenge", "tag", "image")
"""Columns of tables that are kept as facts; a table of millions of ratings has many others."""


def read_prompts(path: Path) -> list[str]:
    """Read the prompts of a file by its ending, or of all such files in a folder.

    ========== =============================================================================================================
    ``.txt``   a prompt a line
    ``.jsonl`` an object a line (GenEval's ``evaluation_metadata.jsonl``); all but the text become the prompt's facts
    ``.json``  a list of texts or objects (HPDv2's ``anime.json`` … and ``test.json``), or of texts under names
    ``.csv``   a table with a header (DrawBench, Pick-a-Pic); ``.tsv`` likewise (PartiPrompts)
    ``.parquet`` a table (Pick-a-Pic), with the extra ``robot``, which brings pyarrow
    folder     all of these, each prompt with its file's name as the fact ``category``
    ========== =============================================================================================================

    Prompts that repeat in a list or table are read once.

    Args:
        path: The file or folder.

    Raises:
        ValueError: If it cannot be read as what its ending says, or holds no prompt.
        MissingExtraError: If a parquet file needs pyarrow.
    """
    if path.is_dir():
        return _of_folder(path)
    reader = READERS.get(path.suffix.lower(), _of_lines)
    try:
        prompts = reader(path)
    except OSError as error:
        raise ValueError(
            f"cannot read the prompt file {path}: {error.strerror}{_searched(path)}; give a UTF-8 text file with one prompt a line"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8 text") from error
    if not prompts:
        raise ValueError(f"the prompt file {path} holds no prompt; write one prompt a line")
    return prompts


def _searched(path: Path) -> str:
    if path.is_absolute() or path.exists():
        return ""
    return f" in {Path.cwd()}, nor beside the config, nor where a run of it was started, if it has one"


def _of_folder(folder: Path) -> list[str]:
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in READERS]
    if not files:
        raise ValueError(f"the folder {folder} holds no prompt file; it needs one that ends in {', '.join(READERS)}")
    return [Prompt(text, facts={"category": file.stem} | dict(getattr(text, "facts", {}))) for file in files for text in read_prompts(file)]


def _of_lines(path: Path) -> list[str]:
    return [line.strip() for line in _lines(path) if line.strip()]


def _of_json_lines(path: Path) -> list[str]:
    lines = enumerate(_lines(path), start=1)
    entries = [_entry(_json(line, f"{path}, line {number}"), f"{path}, line {number}", path) for number, line in lines if line.strip()]
    return [entry for entry in entries if entry]


def _of_json(path: Path) -> list[str]:
    content = _json(path.read_text(encoding="utf-8-sig"), str(path))
    if isinstance(content, dict):  # texts under names, such as {"photo": [...], "anime": [...]}
        content = [{"prompt": text, "category": name} for name, texts in content.items() for text in _list(texts, f"{path}, {name!r}")]
    entries = enumerate(_list(content, str(path)))
    return _once(entry.strip() if isinstance(entry, str) else _entry(entry, f"{path}, entry {number}", path) for number, entry in entries)


def _of_table(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        return _of_rows(rows, rows.fieldnames or (), path)


def _of_parquet(path: Path) -> list[str]:
    parquet = require("pyarrow.parquet", "robot")
    names = [name for name in parquet.read_schema(path).names if name.lower() in (*TEXT_NAMES, *FACT_NAMES)]
    return _of_rows(parquet.read_table(path, columns=names).to_pylist(), names, path)


def _of_rows(rows: Iterable[Mapping[str, Any]], names: Sequence[str], path: Path) -> list[str]:
    text = _text_name(names)
    if text is None:
        raise ValueError(f"{path} has no column named {' or '.join(TEXT_NAMES)}; its columns are {', '.join(names) or 'none'}")
    kept = {name: name.lower() for name in names if name.lower() in FACT_NAMES}
    return _once(
        Prompt(row[text].strip(), facts=_placed({fact: row[name] for name, fact in kept.items() if row[name]}, path))
        for row in rows
        if row[text]
    )


def _entry(entry: Any, place: str, path: Path) -> Prompt:
    text = _text_name(entry) if isinstance(entry, dict) else None
    if text is None or not isinstance(entry[text], str):
        raise ValueError(f"{place} has no text named 'prompt'; write an object with a 'prompt' on every line")
    return Prompt(entry[text].strip(), facts=_placed({name: value for name, value in entry.items() if name != text}, path))


def _placed(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """The facts with a picture's file found from the prompt file's folder."""
    named = isinstance(facts.get("image"), str)
    return facts | {"image": str(path.parent / facts["image"])} if named else facts


def _text_name(names: Iterable[str]) -> str | None:
    """The first of the usual names, whatever its case; a file that has several means the earlier in our list."""
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in TEXT_NAMES if name in by_lower), None)


def _lines(path: Path) -> list[str]:
    """Cut at line feeds alone: other separators of Unicode may stand inside a prompt."""
    return path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place} is no JSON ({error}); write an object with a 'prompt' on every line") from error


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{place} should be a list of prompts, got a {type(value).__name__}")
    return value


def _once(prompts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(prompt for prompt in prompts if prompt))


READERS: dict[str, Callable[[Path], list[str]]] = {
    ".txt": _of_lines,
    ".jsonl": _of_json_lines,
    ".json": _of_json,
    ".csv": _of_table,
    ".tsv": _of_table,
    ".parquet": _of_parquet,
}
"""Ending of a file to what reads it."""
