"""Videos and picture strips of chosen episodes, made by running them again with drawing on."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowrl.errors import MissingExtraError, require
from robot.evaluation.episodes import EpisodeResult, Job
from robot.evaluation.rollout import EpisodeRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from robot.evaluation.pool import EnvPool
    from robot.types import Policy

__all__ = ["Video", "chosen_for_video", "record_videos"]

_logger = logging.getLogger("flowrl.robot.evaluation")
WHY_NOT_EXACT = "networks round differently in batches of another size (rows), and long contacts amplify it; with rows=1 it is exact"
STRIP_PICTURES, STRIP_HEIGHT, GAP = 8, 144, 4  # pictures side by side; pixels
MOST_HZ = 25.0  # pictures a second; drawing costs more than physics


@dataclass(frozen=True, kw_only=True)
class Video:
    """A recorded episode.

    Attributes:
        seed: Of the episode.
        success: Whether it was solved in the evaluation.
        mp4: The video; None where none could be written.
        strip: A PNG of pictures from beginning to end.
        exact: Whether the recording took the same course as the evaluation: length, return and outcome are equal.
        kept: Whether at least the outcome is the same.
    """

    seed: int
    success: bool
    mp4: Path | None
    strip: Path
    exact: bool
    kept: bool


def chosen_for_video(results: Sequence[EpisodeResult], count: int) -> list[EpisodeResult]:
    """The first failures by seed, then the first successes; crashed episodes are left out, they may crash again.

    Args:
        results: Of one arm.
        count: At most so many.
    """
    return sorted((result for result in results if not result.crashed), key=lambda result: (result.success, result.seed))[:count]


def record_videos(pool: EnvPool, policy: Policy, chosen: Sequence[EpisodeResult], *, folder: Path, seed: int) -> list[Video]:
    """Run episodes again and film them, at most 25 pictures a second of the robot's time.

    Args:
        pool: The environments.
        policy: Who acts.
        chosen: Results of the episodes to film.
        folder: Where the files go.
        seed: Of the policy's noise, as in the evaluation.

    Returns:
        A recording for each episode of which pictures came; none where the environment cannot draw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rate_hz = pool.source.action.control_rate_hz
    every = max(1, math.ceil(rate_hz / MOST_HZ))
    reels = {result.seed: _Reel(result, folder, rate_hz=rate_hz, every=every) for result in chosen}
    jobs = [Job(seed=result.seed, arm=result.arm) for result in chosen]
    runner = EpisodeRunner(
        pool=pool, policy=policy, seed=seed, on_picture=lambda job, picture: reels[job.seed].take(picture), picture_every=every
    )
    try:
        again = runner.run(jobs)
    finally:
        for reel in reels.values():
            reel.close()
    return [video for result in again if (video := reels[result.seed].video(result))]


class _Reel:
    """Takes the pictures of one episode: all into the video, a few into the strip."""

    def __init__(self, result: EpisodeResult, folder: Path, *, rate_hz: float, every: int) -> None:
        self._result, self._rate_hz = result, rate_hz / every
        outcome = "success" if result.success else "failure"
        self._stem = folder / f"seed_{result.seed:06d}_{outcome}"
        self._kept = {round(place) for place in np.linspace(0, math.ceil(result.length / every), STRIP_PICTURES)}
        self._taken = 0
        self._strip: list[NDArray[np.uint8]] = []
        self._writer: Any = None
        self._mute = False

    @property
    def _part(self) -> Path:
        return self._stem.with_name(f"{self._stem.name}.part.mp4")

    def take(self, picture: NDArray[np.uint8]) -> None:
        """The next picture."""
        if self._taken in self._kept:
            self._strip.append(picture)
        self._taken += 1
        if self._writer is None and not self._mute:
            self._open()
        if self._writer is not None:
            height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2  # the codec takes even sizes only
            self._writer.append_data(np.ascontiguousarray(picture[:height, :width]))

    def close(self) -> None:
        """Finish the video."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._part.replace(self._stem.with_suffix(".mp4"))

    def video(self, again: EpisodeResult) -> Video | None:
        """What was recorded."""
        if not self._strip:
            return None
        exact = again.same_course(self._result)
        kept = again.success == self._result.success
        if not kept:
            _logger.warning("the recording of seed %d ended otherwise than the evaluation: %s", again.seed, WHY_NOT_EXACT)
        strip = _write_strip(self._strip, self._stem.with_suffix(".png"))
        mp4 = self._stem.with_suffix(".mp4")
        return Video(seed=again.seed, success=self._result.success, mp4=mp4 if mp4.is_file() else None, strip=strip, exact=exact, kept=kept)

    def _open(self) -> None:
        try:
            require("imageio_ffmpeg", "robot")
            imageio = require("imageio.v2", "robot")
        except MissingExtraError as error:
            _logger.warning("no video is written: %s", error)
            self._mute = True
            return
        self._writer = imageio.get_writer(self._part, format="FFMPEG", fps=self._rate_hz, codec="libx264", macro_block_size=2)


def _write_strip(pictures: Sequence[NDArray[np.uint8]], path: Path) -> Path:
    """Pictures side by side."""
    from PIL import Image

    from flowrl.train.grids import save_png

    scaled = []
    for picture in pictures:
        image = Image.fromarray(picture)
        scaled.append(image.resize((max(1, round(image.width * STRIP_HEIGHT / image.height)), STRIP_HEIGHT), Image.Resampling.LANCZOS))
    page = Image.new("RGB", (sum(image.width + GAP for image in scaled) - GAP, STRIP_HEIGHT), "#ffffff")
    left = 0
    for image in scaled:
        page.paste(image, (left, 0))
        left += image.width + GAP
    return save_png(page, path)
