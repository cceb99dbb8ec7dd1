"""Preprocessing against Pillow itself and against the definition of the resizing."""

import pytest
import scorers
import torch

from flowrl.shapes import levels_of
from rewards.preprocessing import ClipPixels, crop_offset_rounded_down, hps_pixels, pillow_resized

LEVEL = 1 / 255 / min(scorers.STD)  # one 8-bit level after normalising

SHAPES = [(60, 90), (90, 61), (224, 224), (300, 257), (512, 384), (97, 331)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_clip_pixels_are_pillows_up_to_one_level_on_one_pixel_in_two_hundred(shape):
    samples = scorers.pictures(2, *shape)
    difference = (ClipPixels()(samples) - scorers.pillow_pixels(samples)).abs()
    assert difference.max() < 1.01 * LEVEL
    assert (difference > 1e-5).double().mean() < 0.005


def test_a_squashed_picture_is_pillows_too():
    samples = scorers.pictures(2, 90, 60)
    difference = (ClipPixels(size=98, squash=True)(samples) - scorers.pillow_pixels(samples, size=98, squash=True)).abs()
    assert difference.max() < 1.01 * LEVEL
    assert (difference > 1e-5).double().mean() < 0.005


def test_the_centre_crop_of_an_odd_surplus_begins_where_torchvision_or_transformers_begin():
    samples = scorers.pictures(1, 10, 13)  # a surplus of 3 pixels: 1.5 rounds to 2, and down to 1
    whole = levels_of(samples) / 255
    pixels = ClipPixels(size=10, mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(pixels(samples), whole[..., 2:12])
    torch.testing.assert_close(pixels(samples, crop_offset_rounded_down), whole[..., 1:11])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hps_pixels_are_the_anti_aliased_bicubic_of_the_numbers_with_black_borders(shape):
    samples = scorers.pictures(2, *shape)
    torch.testing.assert_close(hps_pixels(samples).double(), scorers.hps_reference_pixels(samples), atol=1e-4, rtol=0)


def test_hps_borders_are_black_before_normalising_not_grey():
    pixels = hps_pixels(torch.ones(1, 3, 100, 200))
    black, white = ((level - torch.tensor(scorers.MEAN)) / torch.tensor(scorers.STD) for level in (0.0, 1.0))
    torch.testing.assert_close(pixels[0, :, 55, 0], black)  # 224 x 112, so 56 rows above
    torch.testing.assert_close(pixels[0, :, 56, 0], white)


def test_pictures_are_rounded_to_eight_bits_first():
    torch.testing.assert_close(levels_of(torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 1.2, -0.3])), torch.tensor([0.0, 0, 1, 255, 0]))


def test_a_resized_row_is_rounded_and_clipped_before_the_columns_are():
    levels = torch.zeros(1, 1, 16, 16)
    levels[..., 5:9, 5:9] = 255.0
    one = (scorers.cubic_matrix(16, 8) @ levels[0, 0].double().T).T.clamp(0, 255).round()
    both = (scorers.cubic_matrix(16, 8) @ one).clamp(0, 255).round()
    torch.testing.assert_close(pillow_resized(levels, (8, 8))[0, 0].double(), both)


def test_a_picture_with_a_nan_stays_nan_and_leaves_the_others_alone():
    samples = scorers.pictures(2, 30, 40)
    samples[0, 0, 3, 3] = torch.nan
    for pixels in (ClipPixels(size=28)(samples), hps_pixels(samples, 28)):
        assert pixels[0].isnan().any()
        assert pixels[1].isfinite().all()
