"""Where the episodes of a LeRobot dataset folder lie, by its version."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.errors import close_match

__all__ = ["Place", "find_places"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """One episode.

    Attributes:
        index: Its number.
        length: Control steps.
        data: The parquet file that holds its rows.
        video: Camera's feature to video file and the second at which the episode begins in it.
    """

    index: int
    length: int
    data: Path
    video: Callable[[str], tuple[Path, float]]


def find_places(root: Path, info: Mapping[str, Any]) -> list[Place]:
    """All episodes, in their order.

    Args:
        root: The folder.
        info: Its ``meta/info.json``.

    Raises:
        ValueError: If the version is not one of those known, or what lists the episodes is missing or damaged.
    """
    version = str(info["codebase_version"])
    layout = _LAYOUTS.get(version.partition(".")[0])
    if layout is None:
        raise ValueError(f"{root} is of version {version}; versions 2.0, 2.1 and 3.0 can be read: convert it with LeRobot")
    return sorted(layout(root, info), key=lambda place: place.index)


def _one_file_each(root: Path, info: Mapping[str, Any]) -> list[Place]:
    """Version 2."""
    path = root / "meta" / "episodes.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the whole dataset folder")
    try:
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]
        return [_place_of(root, info, int(line["episode_index"]), int(line["length"])) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); copy it again") from error


def _place_of(root: Path, info: Mapping[str, Any], index: int, length: int) -> Place:
    numbers = {"episode_chunk": index // int(info.get("chunks_size", 1000)), "episode_index": index}

    def video(key: str) -> tuple[Path, float]:
        return root / info["video_path"].format(video_key=key, **numbers), 0.0

    return Place(index=index, length=length, data=root / info["data_path"].format(**numbers), video=video)


def _many_in_a_file(root: Path, info: Mapping[str, Any]) -> list[Place]:
    """Version 3."""
    from robot.demonstrations.lerobot import read_table

    paths = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise ValueError(f"{root / 'meta' / 'episodes'} has no parquet files; copy the whole dataset folder")
    places = []
    for path in paths:
        table = read_table(path)
        wanted = [name for name in table.column_names if not name.startswith("stats/")]
        places += [_place_in(root, info, row, path) for row in table.select(wanted).to_pylist()]
    return places


def _place_in(root: Path, info: Mapping[str, Any], row: Mapping[str, Any], path: Path) -> Place:
    def entry(name: str) -> Any:
        if name not in row:
            raise ValueError(f"{path} has no column {name!r}{close_match(name, row)}")
        return row[name]

    def file(kind: str) -> dict[str, int]:
        return {"chunk_index": int(entry(f"{kind}/chunk_index")), "file_index": int(entry(f"{kind}/file_index"))}

    def video(key: str) -> tuple[Path, float]:
        place = root / info["video_path"].format(video_key=key, **file(f"videos/{key}"))
        return place, float(entry(f"videos/{key}/from_timestamp"))

    data = root / info["data_path"].format(**file("data"))
    return Place(index=int(entry("episode_index")), length=int(entry("length")), data=data, video=video)


_LAYOUTS: dict[str, Callable[[Path, Mapping[str, Any]], list[Place]]] = {"v2": _one_file_each, "v3": _many_in_a_file}
