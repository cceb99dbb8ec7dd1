"""Which digit a prompt names, and the picture that the classifiers see."""

import pytest
import torch
from safetensors.torch import save_file

from flowrl.errors import CheckpointError
from flowrl.train.data import DIGIT_CAPTIONS, DIGIT_WORDS
from rewards.digits import TRAIN_COMMAND, grey_scans, load_classifier, named_digits

SHAPES = {"weight": (2, 3), "scans": (None, 4)}


@pytest.mark.parametrize("caption", DIGIT_CAPTIONS)
def test_every_caption_of_the_data_names_its_digit(caption):
    assert named_digits([caption.format(word) for word in DIGIT_WORDS]).tolist() == list(range(10))


@pytest.mark.parametrize(
    ("prompt", "digit"),
    [("NINE!", 9), ("seven, and seven only", 7), ("someone wrote an eight", 8), ("one", 1)],
    ids=["upper case", "twice the same", "words that contain a digit's name", "alone"],
)
def test_digits_are_found_as_whole_words(prompt, digit):
    assert named_digits([prompt]).item() == digit


@pytest.mark.parametrize(
    ("prompt", "found"),
    [("a cat", "none"), ("", "none"), ("3", "none"), ("two or three", "two and three"), ("an anyone-reads-it tensor", "none")],
)
def test_a_prompt_without_exactly_one_digit_is_refused(prompt, found):
    with pytest.raises(ValueError, match=f"exactly one digit in words .*names {found}"):
        named_digits(["the digit five", prompt])


def test_grey_scans_are_the_luma_of_two_by_two_blocks():
    picture = torch.zeros(1, 3, 16, 16)
    picture[0, 0, 0, 0], picture[0, 1, 0, 1], picture[0, 2, 1, 1] = 1.0, 0.5, 0.25  # one red, one green, one blue pixel in the first block
    expected = torch.zeros(1, 1, 8, 8)
    expected[0, 0, 0, 0] = (0.299 * 1 + 0.587 * 0.5 + 0.114 * 0.25) / 4
    torch.testing.assert_close(grey_scans(picture, ["x"]), expected)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 1, 16, 16), (2, 3, 7, 16)])
def test_pictures_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"samples must be \(batch, 3, height, width\) with at least 8 x 8 pixels"):
        grey_scans(torch.zeros(shape), ["one", "two"])


def test_pictures_and_prompts_must_be_as_many():
    with pytest.raises(ValueError, match="got 2 samples but 1 prompts"):
        grey_scans(torch.zeros(2, 3, 8, 8), ["one"])


def test_a_missing_classifier_names_the_command_that_makes_it():
    with pytest.raises(CheckpointError, match=f"cannot read the classifier no/such.safetensors.*make it with: {TRAIN_COMMAND}"):
        load_classifier("no/such.safetensors", SHAPES)


def test_a_truncated_classifier_names_the_command_that_makes_it(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file({"weight": torch.zeros(2, 3), "scans": torch.zeros(5, 4)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=f"truncated.*make it with: {TRAIN_COMMAND}"):
        load_classifier(str(path), SHAPES)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 1)])
def test_a_classifier_of_another_kind_is_refused(tmp_path, shape):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(shape), "scans": torch.zeros(5, 4)}, path)
    with pytest.raises(CheckpointError, match=f"not this kind of classifier.*make it with: {TRAIN_COMMAND}"):
        load_classifier(str(path), SHAPES)


def test_a_classifier_is_read_once(tmp_path):
    path = tmp_path / "once.safetensors"
    save_file({"weight": torch.ones(2, 3), "scans": torch.zeros(5, 4)}, path)
    first = load_classifier(str(path), SHAPES)
    path.unlink()
    assert load_classifier(str(path), SHAPES)["weight"] is first["weight"]
