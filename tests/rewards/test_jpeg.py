"""JPEG compressibility against files that Pillow writes."""

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl.testing import check_reward
from rewards import JpegCompressibility


@pytest.fixture
def pictures():
    """Flat grey, a smooth ramp, noise."""
    ramp = torch.linspace(0, 1, 32).expand(3, 32, 32)
    return torch.stack([torch.full((3, 32, 32), 0.5), ramp, torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))])


def test_the_score_is_minus_the_kilobytes_of_the_file(pictures, tmp_path):
    scores = JpegCompressibility(quality=80)(pictures, [""] * 3).parts["jpeg"]
    for index, picture in enumerate(pictures):
        pixels = np.rint(255 * picture.double().numpy().transpose(1, 2, 0)).astype("uint8")
        path = tmp_path / f"{index}.jpg"
        Image.fromarray(pixels).save(path, quality=80)
        assert scores[index].item() == pytest.approx(-path.stat().st_size / 1000, abs=1e-6)


def test_flat_pictures_score_above_ramps_and_ramps_above_noise(pictures):
    flat, ramp, noise = JpegCompressibility()(pictures, [""] * 3).parts["jpeg"].tolist()
    assert 0 > flat > ramp > noise


def test_values_outside_the_range_are_clipped_as_in_a_saved_picture(pictures):
    reward = JpegCompressibility()
    beyond = (3 * pictures - 1)[1:2]
    torch.testing.assert_close(reward(beyond, [""]).parts["jpeg"], reward(beyond.clamp(0, 1), [""]).parts["jpeg"])


def test_a_picture_with_a_nan_pixel_scores_nan(pictures):
    pictures[1, 2, 0, 0] = float("nan")
    assert JpegCompressibility()(pictures, [""] * 3).parts["jpeg"].isnan().tolist() == [False, True, False]


def test_jpeg_keeps_the_contract_of_a_reward(pictures):
    check_reward(JpegCompressibility(), pictures, ["a", "b", "c"])


@pytest.mark.parametrize("quality", [0, 96])
def test_a_quality_outside_the_range_is_refused(quality):
    with pytest.raises(ValueError, match=f"quality must be 1 to 95, got {quality}"):
        JpegCompressibility(quality=quality)
