"""Demonstrations as chunks: what was seen up to a control step, and the actions around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowrl.errors import ConfigError
from flowrl.shapes import seeded_generator
from robot.learning.encoders import SensorStats
from robot.types import Observation

if TYPE_CHECKING:
    from robot.demonstrations.data import Demonstrations, Episode

__all__ = ["Windows", "sensor_stats", "split_episodes"]

_PICTURE_AXES = 4  # (time, height, width, channel)


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Every control step of every episode as the present of one chunk.

    Frames before an episode's first and after its last are those again, and so are actions, as in Diffusion Policy: an episode shorter
    than the horizon gives chunks all the same.

    Attributes:
        frames: By sensor, all episodes one after the other: vectors and keypoints float32, pictures uint8
            ``(frame, channel, height, width)``.
        actions: ``(frame, dof)`` float32, physical units.
        seen: ``(window, history)``, frames of each window, oldest first.
        done: ``(window, horizon)``, rows of ``actions`` of each window.
        later: ``(window, ahead)``, frames of each window's future, in the order asked for; no column where none was.
    """

    frames: Mapping[str, Tensor]
    actions: Tensor
    seen: Tensor
    done: Tensor
    later: Tensor

    def __len__(self) -> int:
        return len(self.seen)

    @classmethod
    def of(
        cls, episodes: Sequence[Episode], sensors: Sequence[str], *, horizon: int, history: int, first: int, ahead: Sequence[int] = ()
    ) -> Windows:
        """Cut episodes.

        Args:
            episodes: With the same sensors, at least one.
            sensors: Which of them to keep.
            horizon: Control steps of a chunk.
            history: Frames that are seen.
            first: Index of the present in a chunk.
            ahead: Control steps from the present to each future frame that is wanted, such as ``(4, 8, 12, 16)``.

        Raises:
            ConfigError: If there is no episode.
        """
        if not episodes:
            raise ConfigError("there are no episodes to learn from; record some, or loosen the filter of the demonstrations")
        frames = {name: torch.cat([_frames(episode.observations[name]) for episode in episodes]) for name in sensors}
        seen, done, later, start = [], [], [], 0
        for episode in episodes:
            steps = torch.arange(len(episode))[:, None]
            seen.append(start + (steps + torch.arange(1 - history, 1)).clamp(min=0))
            done.append(start + (steps + torch.arange(-first, horizon - first)).clamp(0, len(episode) - 1))
            later.append(start + (steps + torch.tensor(ahead, dtype=torch.long)).clamp(0, len(episode) - 1))
            start += len(episode)
        actions = torch.cat([torch.from_numpy(episode.actions) for episode in episodes])
        return cls(frames=frames, actions=actions, seen=torch.cat(seen), done=torch.cat(done), later=torch.cat(later))

    def observation(self, rows: Tensor) -> Observation:
        """What is seen in some windows; pictures in [0, 1].

        Args:
            rows: ``(batch,)`` integer.
        """
        return Observation(self.at(self.seen[rows.to(self.seen.device)]))

    def future(self, rows: Tensor) -> dict[str, Tensor]:
        """The frames ahead of some windows, by sensor ``(batch, ahead, ...)``; pictures in [0, 1].

        Args:
            rows: ``(batch,)`` integer.
        """
        return self.at(self.later[rows.to(self.later.device)])

    def chunks(self, rows: Tensor) -> Tensor:
        """The actions of some windows, ``(batch, horizon, dof)``, physical units.

        Args:
            rows: ``(batch,)`` integer.
        """
        return self.actions[self.done[rows.to(self.done.device)]]

    def at(self, places: Tensor) -> dict[str, Tensor]:
        """Frames by sensor, ``(…, frame)`` for places of any shape; pictures in [0, 1].

        Args:
            places: Index into ``frames``.
        """
        values = {name: frames[places] for name, frames in self.frames.items()}
        return {name: value.float() / 255 if value.dtype == torch.uint8 else value for name, value in values.items()}

    def to(self, device: torch.device | str) -> Windows:
        """On another device."""
        frames = {name: value.to(device) for name, value in self.frames.items()}
        return replace(self, frames=frames, **{name: getattr(self, name).to(device) for name in ("actions", "seen", "done", "later")})


def sensor_stats(episodes: Sequence[Episode]) -> dict[str, SensorStats]:
    """Shapes and ranges of every sensor as a policy sees it."""
    return {name: _stats([episode.observations[name] for episode in episodes]) for name in episodes[0].observations}


def split_episodes(demonstrations: Demonstrations, share: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Episodes to train on and to validate on, each in their order.

    Args:
        demonstrations: All episodes.
        share: Of the episodes to validate on; where it is > 0 and there are two, at least one.
        seed: Which ones.
    """
    count = len(demonstrations.episodes)
    held_out = min(max(round(share * count), int(share > 0)), count - 1)
    chosen = set(torch.randperm(count, generator=seeded_generator(seed, 0))[:held_out].tolist())
    parts: tuple[list[Episode], list[Episode]] = ([], [])
    for index, episode in enumerate(demonstrations.episodes):
        parts[index in chosen].append(episode)
    return parts


def _frames(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    frames = torch.from_numpy(np.ascontiguousarray(values))
    return frames.permute(0, 3, 1, 2).contiguous() if frames.dtype == torch.uint8 and frames.ndim == _PICTURE_AXES else frames.float()


def _stats(series: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]) -> SensorStats:
    frames = [_frames(values) for values in series]
    shape = tuple(frames[0].shape[1:])
    if frames[0].dtype == torch.uint8:
        return SensorStats(shape=shape)
    return SensorStats(
        shape=shape, low=torch.stack([part.amin(0) for part in frames]).amin(0), high=torch.stack([part.amax(0) for part in frames]).amax(0)
    )
