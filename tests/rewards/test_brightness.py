"""Brightness, by hand."""

import pytest
import torch

from flowrl.testing import check_reward
from rewards import Brightness


def test_brightness_is_the_mean_of_all_channels_and_pixels():
    pictures = torch.zeros(3, 3, 2, 2)
    pictures[1] = 1.0
    pictures[2, 0] = 0.6  # one of three channels
    scores = Brightness()(pictures, ["", "", ""])
    torch.testing.assert_close(scores.parts["brightness"], torch.tensor([0.0, 1.0, 0.2]))


def test_brightness_of_half_precision_pictures_is_float32():
    pictures = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float16).view(1, 3, 1, 1)
    assert Brightness()(pictures, [""]).parts["brightness"].item() == pytest.approx(1 / 3, abs=1e-7)  # in float16 it is 0.33325


def test_brightness_keeps_the_contract_of_a_reward():
    check_reward(Brightness(), torch.rand(4, 3, 8, 8), ["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(2, 4, 8, 8), r"\(batch, 3, height, width\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "divide 8-bit pictures by 255"),
        (torch.zeros(3, 3, 8, 8), "got 3 samples but 2 prompts"),
    ],
    ids=["channels", "dtype", "count"],
)
def test_what_is_not_a_batch_of_pictures_is_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        Brightness()(samples, ["a", "b"])
