"""Sample grids: pictures with their prompt and reward, as one PNG; a video is shown as a film strip."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad

from flowrl.shapes import levels_of, spread
from flowrl.train.monitors import check_pictures

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SMALLEST_SIDE = 112  # pixels; smaller pictures are enlarged by a whole factor, so that their own pixels stay visible
LARGEST_SIDE = 256  # pixels; larger ones are reduced
STRIP_FRAMES, STRIP_GAP = 4, 2  # frames of a video that its film strip shows, and pixels between them
STRIP_WIDTH = 560  # pixels; what is more than twice as wide as high is a film strip, and may be so wide: two fit on a page
PAGE_WIDTH = 1200  # pixels; decides the number of columns
MARGIN, GAP = 20, 4
PROMPT_SIZE, SCORE_SIZE, TITLE_SIZE = 13, 12, 17
PAPER, INK, GREY, BETTER, WORSE = "#ffffff", "#1c2127", "#5f6b76", "#0065a8", "#b5460f"  # blue and vermilion: told apart by all eyes
WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf")  # for prompts beyond ASCII, where the system has them


def picture_grid(images: Tensor, prompts: Sequence[str], scores: Sequence[float] | Tensor | None, *, title: str = "") -> Image.Image:
    """Draw pictures with their prompt, and reward where there is one, below.

    Args:
        images: Pictures ``(batch, 3, height, width)`` in [0, 1], or videos ``(batch, frame, 3, height, width)``.
        prompts: One per picture.
        scores: The reward of each picture, any unit; None leaves its line out.
        title: Written above the grid.

    Raises:
        ValueError: If the numbers of pictures, prompts and scores differ, or there is none.
    """
    pictures = _pictures(images, len(prompts), len(prompts if scores is None else scores))
    notes = [[]] * len(prompts) if scores is None else [[f"reward {float(score):.3g}"] for score in scores]
    rows = zip(pictures, prompts, notes, strict=True)
    return _lay_out([_cell([picture], note, [GREY] * len(note), prompt) for picture, prompt, note in rows], title)


def before_after_grid(
    before: Tensor,
    after: Tensor,
    prompts: Sequence[str],
    before_scores: Sequence[float] | Tensor,
    after_scores: Sequence[float] | Tensor,
    *,
    title: str = "",
) -> Image.Image:
    """Draw what two models made of the same prompts and noise side by side; a reward that rose is blue, one that fell vermilion.

    One whose digits, as they are written, did not change is grey.

    Args:
        before: Pictures of the first model ``(batch, 3, height, width)`` in [0, 1], or videos ``(batch, frame, 3, height, width)``.
        after: Pictures of the second model, same shape and order.
        prompts: One per pair.
        before_scores: Rewards of the first model's pictures.
        after_scores: Rewards of the second model's pictures.
        title: Written above the grid.

    Raises:
        ValueError: If the numbers of pictures, prompts and scores differ, or there is none.
    """
    pairs = zip(_pictures(before, len(prompts), len(before_scores)), _pictures(after, len(prompts), len(after_scores)), strict=True)
    cells = []
    for pair, prompt, old, new in zip(pairs, prompts, map(float, before_scores), map(float, after_scores), strict=True):
        told = [f"{old:.3g}", f"{new:.3g}"]
        colour = GREY if told[0] == told[1] else BETTER if new > old else WORSE
        cells.append(_cell(pair, [f"before {told[0]}", f"after {told[1]}"], [GREY, colour], prompt))
    return _lay_out(cells, title)


def to_picture(image: Tensor) -> Image.Image:
    """Turn one picture ``(3, height, width)`` in [0, 1] into 8-bit RGB of its own size, rounded to the nearest level.

    Of a video ``(frame, 3, height, width)`` it takes the film strip.
    """
    levels = levels_of(film_strip(image)).byte()
    return Image.fromarray(levels.permute(1, 2, 0).cpu().contiguous().numpy())


def film_strip(image: Tensor) -> Tensor:
    """Four frames of a video ``(frame, 3, height, width)`` side by side as one picture; a picture ``(3, height, width)`` as it is.

    The frames are spread evenly, the first and the last among them; of a shorter video it is all.
    """
    if image.ndim == 3:  # noqa: PLR2004 - (3, height, width)
        return image
    frames = image[spread(len(image), STRIP_FRAMES)]
    return torch.cat(list(pad(frames, (0, STRIP_GAP), value=1.0)), dim=-1)[..., :-STRIP_GAP]


def save_png(picture: Image.Image, path: Path) -> Path:
    """Write a PNG whole or not at all, creating its folder.

    Args:
        picture: What to write.
        path: Where; returned.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    picture.save(part, format="PNG", optimize=True)
    return part.replace(path)


def from_png(path: Path) -> Tensor:
    """Read a picture as float32 ``(3, height, width)`` in [0, 1].

    Raises:
        OSError: If it is missing or not a picture.
    """
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)


def _pictures(images: Tensor, prompts: int, scores: int) -> list[Image.Image]:
    check_pictures(images)
    if not len(images) == prompts == scores or not prompts:
        raise ValueError(f"a grid needs one prompt and one score per image, got {len(images)} images, {prompts} prompts, {scores} scores")
    return [resized(to_picture(image)) for image in images]


def resized(picture: Image.Image) -> Image.Image:
    """The same picture at a size that people can look at: small ones enlarged by a whole factor, large ones reduced."""
    side = max(picture.size)
    if side < SMALLEST_SIDE:
        factor = -(-SMALLEST_SIDE // side)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    if side > LARGEST_SIDE:
        width = STRIP_WIDTH if picture.width > 2 * picture.height else LARGEST_SIDE
        picture.thumbnail((width, LARGEST_SIDE), Image.Resampling.LANCZOS)
    return picture


def _cell(pictures: Sequence[Image.Image], notes: Sequence[str], colours: Sequence[str], prompt: str) -> Image.Image:
    """Pictures in a row, a note under each unless there are none, the prompt on up to two lines below."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    top = max(picture.height for picture in pictures)
    font = font_of(PROMPT_SIZE, prompt)
    lines = _wrap(prompt, width, font.getlength)
    below = top + (12 + SCORE_SIZE if notes else 6)
    cell = Image.new("RGB", (width, below + len(lines) * (PROMPT_SIZE + 4)), PAPER)
    draw = ImageDraw.Draw(cell)
    left = 0
    for place, picture in enumerate(pictures):
        cell.paste(picture, (left, 0))
        draw.rectangle((left, 0, left + picture.width - 1, picture.height - 1), outline="#d5dadf")
        if notes:
            draw.text((left, top + 5), notes[place], fill=colours[place], font=font_of(SCORE_SIZE, notes[place]))
        left += picture.width + GAP
    for line, text in enumerate(lines):
        draw.text((0, below + line * (PROMPT_SIZE + 4)), text, fill=INK, font=font)
    return cell


def _lay_out(cells: Sequence[Image.Image], title: str) -> Image.Image:
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells)
    columns = min(len(cells), max(1, (PAGE_WIDTH - MARGIN) // (width + MARGIN)))
    rows = -(-len(cells) // columns)
    columns = -(-len(cells) // rows)  # even rows: 10 pictures as 5 + 5, not 8 + 2
    top = MARGIN + (TITLE_SIZE + 14 if title else 0)
    page = Image.new("RGB", (MARGIN + columns * (width + MARGIN), top + rows * (height + MARGIN // 2) + MARGIN // 2), PAPER)
    if title:
        font = font_of(TITLE_SIZE, title)
        text = _wrap(title, page.width - 2 * MARGIN, font.getlength)[0]
        ImageDraw.Draw(page).text((MARGIN, MARGIN - 2), text, fill=INK, font=font)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        page.paste(cell, (MARGIN + column * (width + MARGIN), top + row * (height + MARGIN // 2)))
    return page


def _wrap(text: str, width: float, measure: Callable[[str], float], lines: int = 2) -> list[str]:
    """Break at spaces into at most ``lines`` lines; what does not fit ends in an ellipsis."""
    words, broken = text.split(), [""]
    while words:
        longer = f"{broken[-1]} {words[0]}".strip()
        if measure(longer) > width and (broken[-1] and len(broken) < lines):
            broken.append("")
            continue
        if measure(longer) > width:
            broken[-1] = _shorten(longer, width, measure)
            break
        broken[-1] = longer
        words.pop(0)
    return broken


def _shorten(text: str, width: float, measure: Callable[[str], float]) -> str:
    while text and measure(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def font_of(size: int, text: str) -> Font:
    """A font of that size, pixels, that has the text's letters where the system has one."""
    if not text.isascii():
        import matplotlib as mpl

        bundled = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        for name in (*WIDE_FONTS, bundled):
            with contextlib.suppress(OSError):
                return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)
