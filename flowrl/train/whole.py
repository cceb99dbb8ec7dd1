"""Text files that are written whole or not at all."""

from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> Path:
    """Write a file of UTF-8 text beside its place and move it there, so that a reader finds the old one or the new one.

    Args:
        path: Of the file, in a folder that exists; returned.
        text: All of it.
    """
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    return part.replace(path)
