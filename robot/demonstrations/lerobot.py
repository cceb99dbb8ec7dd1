"""Demonstrations in a LeRobot dataset folder, versions 2.0, 2.1 and 3.0, read without LeRobot.

Layout: ``meta/info.json`` has the version, ``fps``, the features and the patterns of the paths. Version 2 has one parquet file and one
video per episode and camera, and ``meta/episodes.jsonl``; version 3 puts many episodes into each, and ``meta/episodes/*/*.parquet`` says
where they lie. Source: LeRobot's ``lerobot.datasets``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowrl.errors import close_match, require
from robot.demonstrations.data import Demonstrations, Episode
from robot.demonstrations.lerobot_layout import Place, find_places
from robot.demonstrations.video import read_frames
from robot.types import ActionSpec, Rotation

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LeRobotFiles"]

_PREFIX = "observation."


@dataclass(frozen=True, kw_only=True)
class LeRobotFiles:
    """Demonstrations in a LeRobot dataset folder.

    Attributes:
        path: Of the folder, the one with ``meta/`` in it.
        sensors: Our names and LeRobot's: ``{"proprioception": "observation.state"}``; None takes all that begin with ``observation.``,
            without that beginning: ``state``, ``images.top``.
        limit: Read only so many episodes, the first; None for all.
        action_key: Name of the actions.
        action_names: Names of the action's dimensions; None takes those of the folder.
        rotation: How the action writes rotations, which the folder does not say.

    Raises:
        ValueError: If the limit is not positive.
    """

    path: Path
    sensors: Mapping[str, str] | None = None
    limit: int | None = None
    action_key: str = "action"
    action_names: tuple[str, ...] | None = None
    rotation: Rotation = "none"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1 episodes, or null for all, got {self.limit}")

    def load(self) -> Demonstrations:
        """Read the folder. Where it does not tell success, an episode counts as one: nobody keeps failures without saying so.

        Raises:
            ValueError: If the folder is none of LeRobot's, of another version, lacks files or features, or a file is damaged.
        """
        info = _read_info(Path(self.path))
        features = info["features"]
        sensors = self._chosen(features)
        if self.action_key not in features:
            raise ValueError(f"{self.path} has no feature {self.action_key!r}{close_match(self.action_key, features)}")
        action = ActionSpec(names=self._names(features[self.action_key]), control_rate_hz=float(info["fps"]), rotation=self.rotation)
        places = find_places(Path(self.path), info)[: self.limit]
        if not places:
            raise ValueError(f"{self.path} holds no episodes")
        tables = _Tables()
        episodes = tuple(self._episode(place, tables, sensors, info) for place in places)
        env = {"env_name": str(info.get("robot_type")), "type": 2, "env_kwargs": {}, "lerobot_version": info["codebase_version"]}
        return Demonstrations(episodes=episodes, action=action, env=env)

    def _chosen(self, features: Mapping[str, Any]) -> dict[str, str]:
        observed = {name.removeprefix(_PREFIX): name for name in features if name.startswith(_PREFIX)}
        chosen = observed if self.sensors is None else dict(self.sensors)
        for feature in chosen.values():
            if feature not in features:
                raise ValueError(f"{self.path} has no feature {feature!r}{close_match(feature, features)}")
        if not chosen:
            raise ValueError(f"{self.path} has no features that begin with {_PREFIX}; name the sensors: {', '.join(features)}")
        return chosen

    def _names(self, feature: Mapping[str, Any]) -> tuple[str, ...]:
        dof = int(np.prod(feature["shape"]))
        names = self.action_names or _flat_names(feature.get("names"))
        if len(names) != dof:
            raise ValueError(f"{self.path} names {len(names)} of {dof} action dimensions ({', '.join(names)}); give action_names")
        return names

    def _episode(self, place: Place, tables: _Tables, sensors: Mapping[str, str], info: Mapping[str, Any]) -> Episode:
        features, rows = info["features"], tables.rows(place)
        steps = len(rows)
        if steps != place.length:
            raise ValueError(
                f"{place.data} has {steps} steps of episode {place.index}, but meta/ says {place.length}; copy the folder again"
            )

        def column(name: str) -> NDArray[Any]:
            return _column(rows, name, features[name]["shape"], place.data)

        def optional(name: str) -> NDArray[Any] | None:
            return column(name).reshape(steps, -1)[:, 0] if name in features and name in rows.column_names else None

        rewards, dones, successes = optional("next.reward"), optional("next.done"), optional("next.success")
        return Episode(
            observations={
                name: read_frames(*place.video(key), steps, float(info["fps"])) if features[key]["dtype"] == "video" else column(key)
                for name, key in sensors.items()
            },
            actions=column(self.action_key).reshape(steps, -1),
            rewards=np.zeros(steps, np.float32) if rewards is None else rewards,
            dones=np.arange(steps) == steps - 1 if dones is None else dones,
            success=True if successes is None else bool(successes.any()),
        )


class _Tables:
    """Parquet files, the latest kept open: version 3 has many episodes in each."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._table: Any = None

    def rows(self, place: Place) -> Any:
        """The rows of one episode."""
        if place.data != self._path:
            self._table, self._path = read_table(place.data), place.data
        compute = require("pyarrow.compute", "robot")
        return self._table.filter(compute.equal(self._table["episode_index"], place.index))


def read_table(path: Path) -> Any:
    """A parquet file.

    Raises:
        ValueError: If it is missing or damaged.
    """
    arrow = require("pyarrow", "robot")
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the whole dataset folder")
    try:
        return require("pyarrow.parquet", "robot").read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); copy it again") from error


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise ValueError(f"{root} is no LeRobot dataset: it has no meta/info.json")
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    if missing := [key for key in ("codebase_version", "fps", "features", "data_path") if key not in info]:
        raise ValueError(f"{path} has no {', '.join(missing)}; is it a LeRobot dataset?")
    return info


def _flat_names(names: Any) -> tuple[str, ...]:
    """``["x", "y"]``, ``{"motors": ["x", "y"]}`` and ``{"x": 0, "y": 1}`` all mean the same."""
    if isinstance(names, Mapping):
        lists = [value for value in names.values() if isinstance(value, list | tuple)]
        return tuple(str(name) for part in lists for name in part) if lists else tuple(sorted(names, key=lambda name: names[name]))
    return tuple(str(name) for name in names or ())


def _column(rows: Any, name: str, shape: Any, path: Path) -> NDArray[Any]:
    """A column as ``(time, *shape)``."""
    if name not in rows.column_names:
        raise ValueError(f"{path} has no column {name!r}{close_match(name, rows.column_names)}")
    values = rows[name].combine_chunks()
    if str(values.type).startswith("struct"):
        return np.stack([_picture(item) for item in values.to_pylist()])
    while hasattr(values, "flatten") and "list" in str(values.type):
        values = values.flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(rows), *shape)


def _picture(item: Mapping[str, Any]) -> NDArray[np.uint8]:
    """A picture that stands in the table itself, as PNG."""
    from PIL import Image

    with Image.open(io.BytesIO(item["bytes"])) as picture:
        return np.asarray(picture.convert("RGB"))
