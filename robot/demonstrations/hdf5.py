"""Demonstrations in robomimic's HDF5 layout: written so that robomimic reads them, read whether or not flowrl wrote them.

Layout (robomimic's documentation, "Dataset structure"): ``data`` has attributes ``total`` (steps) and ``env_args`` (JSON); each
``data/demo_i`` has ``num_samples`` and the datasets ``actions``, ``rewards``, ``dones``, ``states`` (optional), ``obs/<sensor>`` and
``next_obs/<sensor>``; ``mask/<key>`` lists demonstrations. What robomimic has no place for stands in attributes that it ignores:
``flowrl_action`` (names, rate, rotation; JSON), ``flowrl_success`` and ``flowrl_seed`` of each demonstration.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowrl.errors import close_match, require
from robot.demonstrations.data import Demonstrations, Episode
from robot.types import ActionSpec, Rotation

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RobomimicHDF5", "split_names", "write_episode", "write_hdf5"]

ACTION, SEED, SUCCESS = "flowrl_action", "flowrl_seed", "flowrl_success"


def write_hdf5(path: Path, demonstrations: Demonstrations, *, validation_share: float = 0.1, seed: int = 0) -> None:
    """Write a file that robomimic reads; it appears whole or not at all.

    Args:
        path: Of the file; one that is there is replaced.
        demonstrations: What to write.
        validation_share: Share of the episodes in ``mask/valid``, in [0, 1); the others are in ``mask/train``.
        seed: Of that split.

    Raises:
        ValueError: If the share is out of range.
    """
    with new_file(path, demonstrations.action, demonstrations.env) as file:
        for index, episode in enumerate(demonstrations.episodes):
            write_episode(file["data"].create_group(f"demo_{index}"), episode)
        finish(file, validation_share, seed)


@contextmanager
def new_file(path: Path, action: ActionSpec, env: Any) -> Iterator[Any]:
    """An open HDF5 file beside the path, which takes its place once everything is written."""
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with require("h5py", "robot").File(partial, "w") as file:
            data = file.create_group("data")
            data.attrs["env_args"] = json.dumps(dict(env) or {"env_name": "unknown", "type": 2, "env_kwargs": {}})
            data.attrs[ACTION] = json.dumps(asdict(action))
            yield file
        os.replace(partial, path)  # noqa: PTH105
    finally:
        partial.unlink(missing_ok=True)


def write_episode(group: Any, episode: Episode) -> None:
    """Write one demonstration.

    Args:
        group: An empty HDF5 group.
        episode: What to write; pictures are compressed.
    """
    group.attrs["num_samples"] = len(episode)
    group.attrs[SUCCESS] = episode.success
    if episode.seed is not None:
        group.attrs[SEED] = episode.seed
    if episode.model is not None:
        group.attrs["model_file"] = episode.model
    group.create_dataset("actions", data=episode.actions)
    group.create_dataset("rewards", data=episode.rewards)
    group.create_dataset("dones", data=episode.dones.astype(np.int64))
    if episode.states is not None:
        group.create_dataset("states", data=episode.states)
    for name, values in episode.observations.items():
        packing = {"compression": "gzip", "chunks": (1, *values.shape[1:])} if values.dtype == np.uint8 else {}
        group.create_dataset(f"obs/{name}", data=values, **packing)
        if episode.last is not None:
            group.create_dataset(f"next_obs/{name}", data=np.concatenate([values[1:], episode.last[name][None]]), **packing)


def finish(file: Any, validation_share: float, seed: int) -> None:
    """Count the steps and split the demonstrations."""
    data = file["data"]
    data.attrs["total"] = sum(int(group.attrs["num_samples"]) for group in data.values())
    for key, names in split_names(len(data), validation_share, seed).items():
        if names:
            file.create_dataset(f"mask/{key}", data=np.array(names, dtype="S"))


def split_names(count: int, validation_share: float, seed: int) -> dict[str, list[str]]:
    """Demonstrations to train on and to validate on, by robomimic's names of the two.

    Args:
        count: Of the demonstrations; with two or more, a share above zero puts at least one on either side.
        validation_share: In [0, 1).
        seed: Of the draw.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must be in [0, 1), got {validation_share}")
    held_out = min(max(round(count * validation_share), int(validation_share > 0)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return {
        "train": [f"demo_{index}" for index in sorted(order[held_out:])],
        "valid": [f"demo_{index}" for index in sorted(order[:held_out])],
    }


@dataclass(frozen=True, kw_only=True)
class RobomimicHDF5:
    """Demonstrations in a robomimic HDF5 file.

    Attributes:
        path: Of the file.
        sensors: Which observations to read; None for all.
        filter_key: A list of demonstrations in the file, such as ``train``; None for all.
        limit: Read only so many, the first; None for all.
        action_names: Names of the action's dimensions; needed for files that flowrl did not write, which have none.
        control_rate_hz: Control steps a second; None takes what the file says.
        rotation: How the action writes rotations; None takes what the file says, ``delta`` where robomimic recorded it by itself.
    """

    path: Path
    sensors: tuple[str, ...] | None = None
    filter_key: str | None = None
    limit: int | None = None
    action_names: tuple[str, ...] | None = None
    control_rate_hz: float | None = None
    rotation: Rotation | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1 demonstrations, or null for all, got {self.limit}")

    def load(self) -> Demonstrations:
        """Read the file.

        Raises:
            ValueError: If it is missing, no HDF5 file, truncated, empty, lacks keys, or its lengths differ.
        """
        if not Path(self.path).is_file():
            raise ValueError(f"there is no file {self.path}; record one with: flowrl record CONFIG")
        try:
            with require("h5py", "robot").File(self.path, "r") as file:
                return self._read(file)
        except OSError as error:
            raise ValueError(f"{self.path} is truncated, damaged or no HDF5 file ({error}); copy or record it again") from error

    def _read(self, file: Any) -> Demonstrations:
        data = _child(file, "data", str(self.path))
        names = self._chosen(file, data)
        if not names:
            raise ValueError(f"{self.path} holds no demonstrations{f' in mask/{self.filter_key}' if self.filter_key else ''}")
        env = json.loads(data.attrs.get("env_args", "{}"))
        dof = _child(data[names[0]], "actions", f"{self.path}:data/{names[0]}").shape[-1]
        action = self._action(json.loads(data.attrs.get(ACTION, "{}")), env, dof)
        return Demonstrations(episodes=tuple(self._episode(data[name], name) for name in names), action=action, env=env)

    def _chosen(self, file: Any, data: Any) -> list[str]:
        names = list(data)
        if self.filter_key is not None:
            masks = file.get("mask", {})
            if self.filter_key not in masks:
                raise ValueError(f"{self.path} has no mask {self.filter_key!r}{close_match(self.filter_key, masks)}")
            names = [name.decode() for name in masks[self.filter_key][()]]
        if missing := [name for name in names if name not in data]:
            raise ValueError(f"mask/{self.filter_key} of {self.path} lists {missing[0]}, which is not in data/")
        return sorted(names, key=lambda name: (len(name), name))[: self.limit]  # demo_9 before demo_10

    def _action(self, written: dict[str, Any], env: dict[str, Any], dof: int) -> ActionSpec:
        names = self.action_names or written.get("names")
        rate = self.control_rate_hz or written.get("control_rate_hz") or env.get("env_kwargs", {}).get("control_freq")
        if names is None:
            raise ValueError(
                f"{self.path} does not say what its {dof} action dimensions are; give action_names, "
                "such as [x, y, z, rx, ry, rz, gripper] for robosuite's OSC_POSE"
            )
        if rate is None:
            raise ValueError(f"{self.path} does not say how many control steps make a second; give control_rate_hz")
        rotation = self.rotation or written.get("rotation") or ("delta" if env.get("type") == 1 else "none")
        return ActionSpec(names=tuple(names), control_rate_hz=float(rate), rotation=rotation)

    def _episode(self, group: Any, name: str) -> Episode:
        place = f"{self.path}:data/{name}"
        seen = _child(group, "obs", place)
        sensors = tuple(seen) if self.sensors is None else self.sensors
        actions, rewards, dones = (_child(group, key, place)[()] for key in ("actions", "rewards", "dones"))
        following = group.get("next_obs")
        try:
            return Episode(
                observations={sensor: _steps(_child(seen, sensor, f"{place}/obs")) for sensor in sensors},
                actions=actions,
                rewards=rewards,
                dones=dones,
                success=bool(group.attrs.get(SUCCESS, np.max(rewards, initial=0) >= 1)),
                seed=int(group.attrs[SEED]) if SEED in group.attrs else None,
                states=group["states"][()] if "states" in group else None,
                model=group.attrs.get("model_file"),
                last=None if following is None else {sensor: _steps(_child(following, sensor, place))[-1] for sensor in sensors},
            )
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error


def _child(group: Any, key: str, place: str) -> Any:
    if key not in group:
        raise ValueError(f"{place} has no {key!r}{close_match(key, list(group))}; robomimic's layout needs it")
    return group[key]


def _steps(dataset: Any) -> Any:
    """``(time, …)`` with at least one feature."""
    values = dataset[()]
    return values[:, None] if values.ndim == 1 else values
