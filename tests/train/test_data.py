"""The digits: their split, rendering and captions."""

import pytest
import torch
from sklearn.datasets import load_digits

from flowrl.train.data import DIGIT_CAPTIONS, DIGIT_PARTS, DIGIT_WORDS, CaptionedImages, Digits, digit_scans, split_indices


def test_the_parts_are_disjoint_and_together_are_all_scans():
    rows = torch.cat([split_indices(part) for part in DIGIT_PARTS])
    assert sorted(rows.tolist()) == list(range(1797))
    assert [len(split_indices(part)) for part in ("generator", "legibility", "heldout", "test")] == [800, 400, 400, 197]


def test_the_split_never_changes():
    # golden: first rows of numpy.random.RandomState(0).permutation(1797), and of the parts that start at 800, 1200 and 1600
    assert [split_indices(part)[:3].tolist() for part in DIGIT_PARTS] == [
        [1081, 1707, 927],
        [391, 165, 1210],
        [1133, 869, 604],
        [843, 889, 1485],
    ]


def test_every_part_shows_every_digit_about_equally_often():
    for part in DIGIT_PARTS:
        counts = torch.bincount(digit_scans(part, 8)[1], minlength=10) / DIGIT_PARTS[part]
        assert counts.min() > 0.05
        assert counts.max() < 0.15


def test_at_its_own_size_a_scan_is_the_sixteen_grey_levels_in_three_equal_channels():
    images, labels = digit_scans("heldout", 8)
    row = split_indices("heldout")[7].item()
    digits = load_digits()
    expected = torch.tensor(digits.images[row] / 16, dtype=torch.float32).expand(3, 8, 8)
    torch.testing.assert_close(images[7], expected)
    assert labels[7].item() == digits.target[row]


def test_enlarged_scans_average_back_to_nearly_the_scan():
    small, large = digit_scans("test", 8)[0], digit_scans("test", 16)[0]
    assert large.shape == (197, 3, 16, 16)
    assert large.min() >= 0
    assert large.max() <= 1
    back = large.unflatten(-1, (8, 2)).mean(-1).unflatten(-2, (8, 2)).mean(-2)
    assert (back - small).abs().mean() < 0.05  # the interpolation smooths a little; shifted by one pixel it is 0.2


def test_captions_name_the_digit_of_their_scan():
    data = Digits(part="test").load()
    labels = digit_scans("test")[1]
    assert len(data.images) == len(data.captions) == 197
    for texts, label in zip(data.captions, labels.tolist(), strict=True):
        assert texts == tuple(caption.format(DIGIT_WORDS[label]) for caption in DIGIT_CAPTIONS)


def test_noisy_captions_are_wrong_in_nine_tenths_of_the_given_share():
    labels = digit_scans("generator")[1].tolist()
    noisy = Digits(captions=("{}",), caption_noise=0.5).load().captions
    wrong = sum(texts != (DIGIT_WORDS[label],) for texts, label in zip(noisy, labels, strict=True))
    assert abs(wrong / 800 - 0.45) < 0.06  # a digit drawn at random is the right one in a tenth; three standard deviations
    assert Digits(captions=("{}",), caption_noise=0.5).load().captions == noisy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 7}, "image_size must be at least 8, the size of the scans, got 7"),
        ({"captions": ("a digit",)}, "exactly one {} where the digit's name goes"),
        ({"caption_noise": 1.5}, r"caption_noise must lie in \[0, 1\], got 1.5"),
        ({"part": "validation"}, "unknown part 'validation' of the digits; allowed: generator, legibility, heldout, test"),
    ],
    ids=["size", "caption", "noise", "part"],
)
def test_bad_settings_of_the_digits_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Digits(**fields).load()


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (torch.zeros(2, 1, 8, 8), (("a",), ("b",)), r"\(picture, 3, height, width\) with at least one picture"),
        (torch.zeros(0, 3, 8, 8), (), "with at least one picture"),
        (torch.zeros(2, 3, 8, 8), (("a",),), "got 2 pictures but captions for 1"),
        (torch.zeros(2, 3, 8, 8), (("a",), ()), "picture 1 has no caption"),
    ],
    ids=["channels", "empty", "count", "no caption"],
)
def test_a_data_set_that_does_not_fit_together_is_refused(images, captions, message):
    with pytest.raises(ValueError, match=message):
        CaptionedImages(images, captions)
