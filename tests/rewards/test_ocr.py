"""Reading words in pictures."""

import sys

import pytest
import torch

from flowrl.errors import MissingExtraError, RewardError
from flowrl.rl import Prompt
from flowrl.testing import check_reward
from rewards import OCRAccuracy
from rewards.known_pictures import drawn_word
from rewards.ocr import edit_distance, text_accuracy, wanted_text
from rewards.self_test import run_self_test

QUICK = OCRAccuracy(detection_side=128)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("same", "same", 0), ("ab", "ba", 2)],
)
def test_edit_distance_counts_insertions_deletions_and_replacements(one, other, expected):
    assert edit_distance(one, other) == expected


@pytest.mark.parametrize(
    ("read", "wanted", "expected"),
    [
        ("OPEN", "open", 1.0),
        ("We are OP EN today", "Open", 1.0),
        ("OPFN", "OPEN", 0.75),
        ("", "OPEN", 0.0),
        ("something very long that is not it", "OPEN", 0.0),
        ("New York\nCity", "new york city", 1.0),
    ],
    ids=["case", "stands inside", "one letter", "nothing read", "capped", "white space"],
)
def test_text_accuracy_is_the_formula_of_flow_grpo(read, wanted, expected):
    assert text_accuracy(read, wanted) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('a sign "OPEN" above a sign "24h"', "OPEN"),
        ("a poster that says “Good night”", "Good night"),
        ("a poster that says «Bonne nuit»", "Bonne nuit"),
        (Prompt('a sign "OPEN"', facts={"text": "closed"}), "closed"),
    ],
)
def test_the_wanted_text_is_a_fact_or_the_first_in_quotes(prompt, expected):
    assert wanted_text(prompt) == expected


@pytest.mark.parametrize("prompt", ["a sign", 'a sign " "', Prompt("a sign", facts={"text": ""})])
def test_a_prompt_without_a_text_is_refused(prompt):
    with pytest.raises(ValueError, match=r"needs the wanted text in double quotes, or as the fact 'text'"):
        wanted_text(prompt)


def test_drawn_words_are_read():
    pictures = torch.stack([drawn_word("Hello", side=128), drawn_word("New\nYork", side=128), drawn_word("Hello", side=128)])
    scores = QUICK(pictures, ['says "hello"', 'says "New York"', 'says "help"']).parts["ocr"]
    assert scores.tolist() == pytest.approx([1.0, 1.0, 0.5])  # hello -> help: one letter replaced, one removed, of four


def test_a_blank_picture_scores_zero_and_one_that_is_not_finite_has_no_score():
    pictures = torch.ones(2, 3, 64, 64)
    pictures[1, 0, 0, 0] = torch.inf
    scores = QUICK(pictures, ['says "hello"'] * 2).parts["ocr"]
    assert scores[0] == 0
    assert scores[1].isnan()


def test_lines_of_which_the_engine_is_unsure_can_be_left_out():
    picture = drawn_word("Hello", side=128)[None]
    assert OCRAccuracy(detection_side=128, least_score=1.0)(picture, ['"Hello"']).parts["ocr"].item() == 0.0


@pytest.mark.slow
def test_ocr_keeps_the_contract_and_passes_its_own_self_test():
    pictures = torch.stack([drawn_word(word, side=96) for word in ("seven", "nine")])
    check_reward(QUICK, pictures, ['"seven"', '"ninety"'])
    report = run_self_test(OCRAccuracy())
    assert report.problems == ()
    assert report.cases[0].scores == pytest.approx((1.0, 0.0, 0.0, 1.0), abs=0.3)


def test_other_models_are_named_by_file_and_what_is_no_model_is_refused(tmp_path):
    picture = drawn_word("Hello", side=64)[None]
    with pytest.raises(RewardError, match=r"there is no file .*none\.onnx; leave it out"):
        OCRAccuracy(recogniser=str(tmp_path / "none.onnx"))(picture, ['"x"'])
    (tmp_path / "some.onnx").write_bytes(b"no model")
    with pytest.raises(RewardError, match=r"the OCR engine failed on a picture .*Load model from .*some\.onnx"):
        OCRAccuracy(recogniser=str(tmp_path / "some.onnx"))(picture, ['"x"'])


def test_without_the_engine_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flowrl-torch\[ocr\]'"):
        OCRAccuracy(threads=3)(torch.ones(1, 3, 32, 32), ['"x"'])
    with pytest.raises(MissingExtraError, match="rapidocr"):
        OCRAccuracy(threads=3).load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"least_score": 1.5}, r"least_score must lie in \[0, 1\], got 1.5"), ({"threads": 0}, "must be >= 1, got 736 and 0")],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        OCRAccuracy(**settings)


def test_prompts_without_a_text_are_found_before_a_rollout():
    OCRAccuracy().check_prompts(['a sign "A"', Prompt("a sign", facts={"text": "B"})])
    with pytest.raises(ValueError, match="'a sign' has neither"):
        OCRAccuracy().check_prompts(['a sign "A"', "a sign"])
