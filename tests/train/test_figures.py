import math

import pytest

from flowrl.train.figures import duration, figure, memory, signed, words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.57234, "0.5723"),
        (-1.5, "−1.5"),
        (40.0, "40"),
        (1496, "1,496"),
        (11968.4, "11,968"),
        (43_000_000, "43,000,000"),
        (2.5e-5, "2.5e−5"),
        (math.nan, "not finite"),
    ],
)
def test_figures_are_short_and_whole_numbers_exact(value, text):
    assert figure(value) == text


def test_a_change_is_written_to_the_second_digit_of_its_interval():
    assert signed(0.37512, 0.1084) == "+0.38 ± 0.11"
    assert signed(-0.12345, 0.0123) == "−0.123 ± 0.012"
    assert signed(12.3, 45.0) == "+12 ± 45"
    assert signed(0.25, None) == "+0.25"
    assert signed(0.0, 0.0) == "0"


def test_a_change_without_a_digit_left_is_about_0():
    assert signed(-3e-7, 2e-7) == signed(1e-9, 4e-6) == "≈ 0"
    assert signed(-3e-7, 2e-4) == "−0.00000 ± 0.00020"


def test_times_and_sizes_have_fitting_units():
    assert [duration(s) for s in (6.54, 185, 7620)] == ["6.5 s", "3 min 05 s", "2 h 07 min"]
    assert [memory(b) for b in (0, 512, 1945, 5 * 2**30)] == ["0 B", "512 B", "1.9 KiB", "5 GiB"]


def test_names_become_words():
    assert words("heldout_accuracy") == "held-out accuracy"
