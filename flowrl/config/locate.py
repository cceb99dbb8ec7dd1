"""Data files that a config names by a relative path, found from any working directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["locate_data"]


def locate_data(config: dict[str, Any], folder: Path) -> None:
    """Write the full path of prompt files, and of the model's folder, that only lie beside the config or where its run began; in place.

    A relative path means the working directory wherever something is there; it then stays as it is, as does what is found nowhere.

    Args:
        config: Nested dicts and lists, resolved. Every ``prompts`` that is a text may be a file, and so may the ``path`` of a ``model``.
        folder: The config's own. In a run folder that ``run_dir`` names by a relative path, the folder that the run was started from is
            what remains before ``run_dir``.
    """
    folders = [folder, *_started_from(config.get("run_dir"), folder.resolve())]
    _locate(config, folders)


def _started_from(run_dir: object, folder: Path) -> list[Path]:
    if not isinstance(run_dir, str) or Path(run_dir).is_absolute():
        return []
    parts = Path(run_dir).parts
    return [Path(*folder.parts[: -len(parts)])] if parts and folder.parts[-len(parts) :] == parts else []


def _locate(config: Any, folders: list[Path]) -> None:
    if isinstance(config, list):
        for value in config:
            _locate(value, folders)
    if not isinstance(config, dict):
        return
    if isinstance(config.get("prompts"), str):
        config["prompts"] = _found(config["prompts"], folders)
    model = config.get("model")
    if isinstance(model, dict) and isinstance(model.get("path"), str):
        model["path"] = _found(model["path"], folders)
    for value in config.values():
        _locate(value, folders)


def _found(name: str, folders: list[Path]) -> str:
    if name.startswith(("assets/", "~")) or not name.strip() or "\n" in name or _exists(Path(name)):
        return name
    return next((str((folder / name).resolve()) for folder in folders if _exists(folder / name)), name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text that is too long for a file's name
        return False
