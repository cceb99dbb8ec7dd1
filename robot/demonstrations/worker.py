"""What a recording does in each of its processes: one environment, one seed after the other."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.errors import require
from robot.demonstrations.hdf5 import write_episode
from robot.demonstrations.play import play_expert

if TYPE_CHECKING:
    import gymnasium

    from robot.envs.base import EnvSource

__all__ = ["close_env", "open_env", "play_seed"]


class _Stage:
    """The environment of this process."""

    source: EnvSource | None = None
    env: gymnasium.Env[Any, Any] | None = None

    @classmethod
    def close(cls) -> None:
        """Let go of it."""
        if cls.env is not None:
            cls.env.close()
        cls.env = None


def open_env(source: EnvSource) -> None:
    """Say what to play; the environment itself is made with the first seed."""
    _Stage.close()
    _Stage.source = source


def close_env() -> None:
    """Free the environment."""
    _Stage.close()


def play_seed(seed: int, action_noise: float, keep_failures: bool, folder: str) -> dict[str, Any]:  # noqa: FBT001
    """Play one seed and, if it is to be kept, write it to ``folder/SEED.hdf5``.

    Returns:
        The line for the log. An episode that raises costs only itself, and the environment is made anew.

    Raises:
        FlowrlError: If the environment cannot be made, which no other seed would mend.
    """
    source, began = _Stage.source, time.perf_counter()
    if source is None:
        raise RuntimeError("open_env comes first")
    env = _Stage.env = _Stage.env or source.make()
    line: dict[str, Any] = {"seed": seed, "success": False, "kept": False, "length": 0, "return": 0.0, "seconds": 0.0, "error": None}
    try:
        episode = play_expert(env, source, seed, action_noise)
    except Exception as error:  # simulators raise anything
        _Stage.close()
        place = traceback.extract_tb(error.__traceback__)[-1]
        return line | {"error": f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"}
    line |= {"success": episode.success, "length": len(episode), "return": round(float(episode.rewards.sum()), 6)}
    line["kept"] = episode.success or keep_failures
    if line["kept"]:
        partial = Path(folder) / f"{seed}.partial"
        with require("h5py", "robot").File(partial, "w") as file:
            write_episode(file.create_group("episode"), episode)
        os.replace(partial, partial.with_suffix(".hdf5"))  # noqa: PTH105
    line["seconds"] = round(time.perf_counter() - began, 3)
    return line
