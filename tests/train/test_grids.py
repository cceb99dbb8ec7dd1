import numpy as np
import pytest
import torch
from PIL import ImageColor

from flowrl.train.grids import BETTER, GREY, MARGIN, WORSE, before_after_grid, film_strip, from_png, picture_grid, save_png, to_picture


def colours(picture) -> set[tuple[int, ...]]:
    return set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))


def test_small_pictures_are_enlarged_by_whole_pixels():
    image = torch.zeros(1, 3, 8, 8)
    image[0, 0, 2, 5] = 1.0
    page = picture_grid(image, ["a"], [0.0])
    # 8 pixels become 8 * 14 = 112; the red one fills rows 28..41 and columns 70..83 of the picture
    red = {(x - MARGIN, y - MARGIN) for x in range(page.width) for y in range(page.height) if page.getpixel((x, y)) == (255, 0, 0)}
    assert red == {(x, y) for x in range(70, 84) for y in range(28, 42)}


def test_large_pictures_are_reduced():
    page = picture_grid(torch.zeros(1, 3, 1024, 512), ["a"], [0.0])
    assert page.width == 128 + 2 * MARGIN
    assert 256 < page.height < 340


def test_rows_are_even():
    page = picture_grid(torch.zeros(10, 3, 16, 16), ["a"] * 10, torch.zeros(10))
    assert page.width == MARGIN + 5 * (112 + MARGIN)  # 5 + 5, not 8 + 2


def test_a_reward_that_rose_is_blue_and_one_that_fell_is_vermilion():
    image = torch.zeros(1, 3, 8, 8)
    better, worse = (colours(before_after_grid(image, image, ["a"], [0.5], [score])) for score in (0.9, 0.1))
    blue, vermilion = ImageColor.getrgb(BETTER), ImageColor.getrgb(WORSE)
    assert (blue in better, vermilion in better) == (True, False)
    assert (blue in worse, vermilion in worse) == (False, True)


def test_before_is_on_the_left_and_after_on_the_right():
    page = before_after_grid(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), ["a"], [0.0], [1.0])
    assert page.getpixel((MARGIN + 56, MARGIN + 56)) == (0, 0, 0)
    assert page.getpixel((MARGIN + 112 + 4 + 56, MARGIN + 56)) == (255, 255, 255)


@pytest.mark.parametrize("prompt", ["word " * 200, "w" * 500, "naïve 雨 " * 50, ""], ids=["many words", "one long word", "wide", "empty"])
def test_a_prompt_of_any_length_leaves_the_grid_as_wide_as_it_is(prompt):
    short, long = (picture_grid(torch.zeros(2, 3, 16, 16), [text, "b"], [0.0, 0.0]) for text in ("a", prompt))
    assert long.width == short.width
    assert long.height - short.height in (0, 17)  # at most one more line of text


def test_pixels_are_rounded_to_the_nearest_level_and_clamped():
    image = torch.tensor([-0.2, 0.5, 0.999, 1.7]).view(1, 2, 2).expand(3, 2, 2)
    assert np.asarray(to_picture(image))[..., 0].flatten().tolist() == [0, 128, 255, 255]


def test_a_picture_survives_its_png_to_half_a_level(tmp_path):
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    path = save_png(to_picture(image), tmp_path / "new" / "a.png")
    torch.testing.assert_close(from_png(path), image, atol=0.5 / 255 + 1e-6, rtol=0)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_a_grid_with_a_prompt_too_few_is_refused():
    with pytest.raises(ValueError, match="got 2 images, 1 prompts, 2 scores"):
        picture_grid(torch.zeros(2, 3, 8, 8), ["a"], [0.0, 1.0])
    with pytest.raises(ValueError, match="got 0 images"):
        picture_grid(torch.zeros(0, 3, 8, 8), [], [])


def test_a_film_strip_shows_four_frames_from_the_first_to_the_last_with_white_between():
    video = torch.linspace(0, 0.6, 7).view(7, 1, 1, 1).expand(7, 3, 4, 6)
    strip = film_strip(video)
    assert strip.shape == (3, 4, 4 * 6 + 3 * 2)
    row = [value for frame in (0.0, 0.2, 0.4, 0.6) for value in [*[frame] * 6, 1.0, 1.0]][:-2]
    torch.testing.assert_close(strip[0, 0], torch.tensor(row))
    assert torch.equal(film_strip(video[0]), video[0])


def test_a_grid_of_videos_is_that_of_their_film_strips_and_leaves_room_for_them():
    videos = torch.rand(2, 5, 3, 120, 208, generator=torch.Generator().manual_seed(0))
    page = picture_grid(videos, ["a", "b"], [0.0, 1.0])
    strips = torch.stack([film_strip(video) for video in videos])
    assert np.array_equal(np.asarray(page), np.asarray(picture_grid(strips, ["a", "b"], [0.0, 1.0])))
    assert page.width == MARGIN + 2 * (560 + MARGIN)


def test_without_scores_a_cell_is_the_picture_and_its_prompt_without_a_line_for_the_reward():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain, scored = (picture_grid(images, ["a", "b"], scores) for scores in (None, [0.0, 1.0]))
    assert (plain.width, plain.height) == (scored.width, scored.height - 18)  # 12 pixels of text and 6 around it
    rows = slice(MARGIN, MARGIN + 112)
    assert np.array_equal(np.asarray(plain)[rows], np.asarray(scored)[rows])
    assert ImageColor.getrgb(GREY) not in colours(plain)


def test_a_reward_whose_written_digits_are_the_same_is_grey():
    image = torch.zeros(1, 3, 8, 8)
    same = colours(before_after_grid(image, image, ["a"], [0.51234], [0.51249]))
    assert not {ImageColor.getrgb(BETTER), ImageColor.getrgb(WORSE)} & same
