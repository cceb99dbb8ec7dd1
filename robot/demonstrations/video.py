"""Frames of a video file, by the ffmpeg that comes with imageio."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import numpy as np

from flowrl.errors import require

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["read_frames"]


def read_frames(path: Path, start_s: float, count: int, fps: float) -> NDArray[np.uint8]:
    """Consecutive frames, ``(count, height, width, 3)``.

    Args:
        path: Of the video.
        start_s: When the first of them is shown, seconds.
        count: How many.
        fps: Frames per second.

    Raises:
        ValueError: If the file is missing, cannot be decoded, or ends too early.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the whole dataset folder")
    seek = ["-ss", f"{start_s - 0.5 / fps:.6f}"] if start_s > 0 else []  # between two frames, so that rounding cannot pick the wrong one
    output = ["-frames:v", str(count), "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-"]
    command = [require("imageio_ffmpeg", "robot").get_ffmpeg_exe(), "-v", "error", *seek, "-i", str(path), *output]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(
            f"{path} cannot be decoded ({said[0] if said else 'ffmpeg failed'}); is it damaged, or its codec unknown to ffmpeg?"
        )
    frames = _split(done.stdout)
    if len(frames) < count:
        raise ValueError(f"{path} ends after {len(frames)} of the {count} frames from {start_s:g} s on; copy it again")
    return np.stack(frames)


def _split(stream: bytes) -> list[NDArray[np.uint8]]:
    """The pictures of a stream of binary PPM: ``P6``, width and height, 255, pixels."""
    frames, at = [], 0
    while at < len(stream):
        size, pixels = stream.index(b"\n", at) + 1, 3
        first = stream.index(b"\n", stream.index(b"\n", size) + 1) + 1
        width, height = (int(number) for number in stream[size:first].split()[:2])
        frames.append(np.frombuffer(stream, np.uint8, height * width * pixels, first).reshape(height, width, pixels))
        at = first + height * width * pixels
    return frames
