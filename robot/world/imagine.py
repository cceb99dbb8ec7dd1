"""What a world-action model imagines, beside what happened: frames decoded and drawn as one picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from flowrl.train.grids import font_of, resized, to_picture
from robot.learning.windows import Windows

if TYPE_CHECKING:
    from flowrl.shapes import RandomSource
    from robot.demonstrations.data import Episode
    from robot.world_action import WorldActionModel

__all__ = ["Imagined", "can_draw", "imagine_episode", "imagine_windows", "picture_rows"]

_PICTURE_AXES = 3  # (channel, height, width)
_PANEL, _DOT, _GAP, _LABEL, _TEXT = 144, 3, 4, 76, 12  # pixels
_ROOM = 0.08  # around the points, as a share of their extent
_PAPER, _INK, _FRAME, _GHOST = "#ffffff", "#1c2127", "#d5dadf", "#9aa5b1"
_COLOURS = ("#0072b2", "#d55e00", "#00855f", "#cc79a7")


@dataclass(frozen=True, kw_only=True, eq=False)
class Imagined:
    """Frames that a model imagined, and those that came.

    Attributes:
        seen: Latest frame that the model was shown, by sensor ``(batch, 1, ...)``.
        real: What came, by sensor ``(batch, frame, ...)``.
        imagined: What the model decoded to, likewise.
        times: Noise level at which each imagined frame was left, ``(batch, frame)``; 0 is fully imagined.
        stride: Control steps between frames.
    """

    seen: Mapping[str, Tensor]
    real: Mapping[str, Tensor]
    imagined: Mapping[str, Tensor]
    times: Tensor
    stride: int

    def picture(self) -> Image.Image:
        """Two rows for each of the batch, real above imagined; points of the real frames lie as rings behind the imagined ones.

        Raises:
            ValueError: If no sensor can be drawn: neither a picture, nor keypoints, nor a vector of two or three numbers.
        """
        artist = _Artist.of({name: torch.cat([self.seen[name], self.real[name]], dim=1) for name in self.real})
        rows: dict[str, list[Image.Image]] = {}
        for index in range(len(self.times)):
            number = f" {index + 1}" if len(self.times) > 1 else ""
            seen, real, imagined = (_one(frames, index) for frames in (self.seen, self.real, self.imagined))
            rows[f"real{number}"] = [*artist.draw(seen), *artist.draw(real)]
            rows[f"imagined{number}"] = [*artist.draw(seen), *artist.draw(imagined, behind=real)]
        left = self.times.mean(0).tolist()
        notes = [f", noise {time:.2f}" if time else "" for time in left]
        return _table(rows, ["now", *(f"+{self.stride * (k + 1)} steps{note}" for k, note in enumerate(notes))])


@torch.no_grad()
def imagine_windows(model: WorldActionModel, windows: Windows, rows: Tensor, generator: RandomSource = None) -> Imagined:
    """Let a model imagine what follows some control steps of demonstrations.

    Args:
        model: Acts by its own schedule.
        windows: Cut with the model's sensors, its history and its frames ahead.
        rows: ``(batch,)`` integer, which windows.
        generator: Source of the noise.
    """
    observation = windows.observation(rows)
    state = model.begin(observation, generator).follow(model.schedule)
    real = windows.future(rows)
    return Imagined(
        seen={name: observation.values[name][:, -1:].cpu() for name in model.codec.sensors},
        real={name: real[name].cpu() for name in model.codec.sensors},
        imagined={name: frames.cpu() for name, frames in model.imagined(state).items()},
        times=state.times.cpu(),
        stride=model.stride,
    )


def imagine_episode(model: WorldActionModel, episode: Episode, steps: Sequence[int] = (0,), generator: RandomSource = None) -> Imagined:
    """Let a model imagine what follows some control steps of an episode; frames past its end are its last one.

    Args:
        model: Acts by its own schedule.
        episode: With the model's sensors.
        steps: Control steps of the episode that are the present.
        generator: Source of the noise.

    Raises:
        ValueError: If a step lies outside the episode.
    """
    if not steps or not 0 <= min(steps) <= max(steps) < len(episode):
        raise ValueError(f"an episode of {len(episode)} control steps has steps 0 to {len(episode) - 1}, got {list(steps)}")
    ahead = [model.stride * (place + 1) for place in range(model.layout.frames)]
    windows = Windows.of([episode], model.sensors, horizon=model.horizon, history=model.history, first=0, ahead=ahead)
    return imagine_windows(model, windows.to(model.device), torch.tensor(steps), generator)


def can_draw(shapes: Iterable[Sequence[int]]) -> bool:
    """Whether any of some sensors, by the shape of a frame, is a picture or a place."""
    return any(len(shape) == _PICTURE_AXES or _is_place(shape) for shape in shapes)


def picture_rows(rows: Mapping[str, Tensor]) -> Image.Image:
    """Rows of pictures with their names before them.

    Args:
        rows: By name ``(picture, channel, height, width)`` in [0, 1].
    """
    return _table({name: [resized(to_picture(picture)) for picture in pictures] for name, pictures in rows.items()})


@dataclass(frozen=True, kw_only=True)
class _Artist:
    """Draws frames of some sensors; all points share one square, y downwards as in a picture.

    Attributes:
        pictures: Sensors that are pictures.
        points: Sensors that are places: keypoints, and vectors of two or three numbers; their first two coordinates count.
        corner: Smallest coordinates of the square ``(2,)``.
        side: Of the square.
    """

    pictures: tuple[str, ...]
    points: tuple[str, ...]
    corner: Tensor
    side: float

    @classmethod
    def of(cls, frames: Mapping[str, Tensor]) -> _Artist:
        """For frames ``(batch, time, ...)`` that set the scale."""
        shapes = {name: tuple(value.shape[2:]) for name, value in frames.items()}
        pictures = tuple(name for name, shape in shapes.items() if len(shape) == _PICTURE_AXES)
        points = tuple(name for name, shape in shapes.items() if _is_place(shape))
        if not can_draw(shapes.values()):
            raise ValueError(f"only pictures, keypoints and vectors of two or three numbers can be drawn, the frames are {shapes}")
        if not points:
            return cls(pictures=pictures, points=points, corner=torch.zeros(2), side=1.0)
        places = torch.cat([_places(frames[name]).flatten(0, -2) for name in points])
        low, high = places.amin(0), places.amax(0)
        side = max(float((high - low).amax()), 1e-6) * (1 + 2 * _ROOM)
        return cls(pictures=pictures, points=points, corner=(low + high) / 2 - side / 2, side=side)

    def draw(self, frames: Mapping[str, Tensor], behind: Mapping[str, Tensor] | None = None) -> list[Image.Image]:
        """Draw frames ``(time, ...)``, each as its pictures and its points side by side.

        Args:
            frames: By sensor.
            behind: Whose points to show as rings.
        """
        drawn = []
        for time in range(len(next(iter(frames.values())))):
            parts = [resized(to_picture(frames[name][time])) for name in self.pictures]
            if self.points:
                parts.append(self._panel(_one(frames, time), None if behind is None else _one(behind, time)))
            drawn.append(_beside(parts))
        return drawn

    def _panel(self, frame: Mapping[str, Tensor], behind: Mapping[str, Tensor] | None) -> Image.Image:
        panel = Image.new("RGB", (_PANEL, _PANEL), _PAPER)
        pen = ImageDraw.Draw(panel)
        for name in self.points if behind is not None else ():
            for x, y in self._pixels((behind or {})[name]):
                pen.ellipse((x - _DOT - 1, y - _DOT - 1, x + _DOT + 1, y + _DOT + 1), outline=_GHOST)
        for place, name in enumerate(self.points):
            for x, y in self._pixels(frame[name]):
                pen.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), fill=_COLOURS[place % len(_COLOURS)])
        pen.rectangle((0, 0, _PANEL - 1, _PANEL - 1), outline=_FRAME)
        return panel

    def _pixels(self, values: Tensor) -> list[list[float]]:
        pixels: list[list[float]] = ((_places(values) - self.corner) / self.side * _PANEL).reshape(-1, 2).tolist()
        return pixels


def _is_place(shape: Sequence[int]) -> bool:
    """Keypoints ``(point, ≥ 2)``, or a vector of two or three numbers."""
    return shape[-1] >= 2 if len(shape) == 2 else len(shape) == 1 and shape[0] in (2, 3)  # noqa: PLR2004


def _places(values: Tensor) -> Tensor:
    return values[..., :2].float()


def _one(frames: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: value[index] for name, value in frames.items()}


def _beside(parts: Sequence[Image.Image]) -> Image.Image:
    if len(parts) == 1:
        return parts[0]
    whole = Image.new("RGB", (sum(part.width for part in parts) + _GAP * (len(parts) - 1), max(part.height for part in parts)), _PAPER)
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + _GAP
    return whole


def _table(rows: Mapping[str, Sequence[Image.Image]], columns: Sequence[str] = ()) -> Image.Image:
    """Pictures of one size in rows, with the rows' names on the left and the columns' above."""
    first = next(iter(rows.values()))[0]
    across, down, top = first.width + _GAP, first.height + _GAP, _GAP + (_TEXT + 6 if columns else 0)
    size = (_LABEL + across * max(len(pictures) for pictures in rows.values()), top + down * len(rows))
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, name in enumerate(columns):
        pen.text((_LABEL + across * place, _GAP), name, fill=_INK, font=font_of(_TEXT, name))
    for row, (name, pictures) in enumerate(rows.items()):
        pen.text((_GAP, top + down * row + _GAP), name, fill=_INK, font=font_of(_TEXT, name))
        for place, picture in enumerate(pictures):
            sheet.paste(picture, (_LABEL + across * place, top + down * row))
    return sheet
