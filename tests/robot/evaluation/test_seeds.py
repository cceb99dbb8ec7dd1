"""Seeds as people write them."""

import pytest

from flowrl.errors import ConfigError
from robot.evaluation import check_disjoint, parse_seeds


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0:3", (0, 1, 2)), ("5", (5,)), ("0:2, 10:12,7", (0, 1, 10, 11, 7)), ([4, 2], (4, 2)), (range(3), (0, 1, 2))],
)
def test_ranges_leave_out_their_end_and_keep_their_order(given, expected):
    assert parse_seeds(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("3:3", r"the range '3:3' of seeds is empty"),
        ("a:3", r"seeds must read A:B or be numbers, got 'a:3'"),
        ("0:3,", r"got '' in '0:3,'"),
        ("0:5,3:7", r"3, 4 come twice"),
        ([-1, 2], r"whole numbers >= 0, at least one, got \[-1, 2\]"),
        ([], r"at least one, got \[\]"),
    ],
)
def test_what_names_no_episodes_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        parse_seeds(given)


def test_selection_and_report_may_not_share_a_seed():
    check_disjoint(range(50), range(50, 100))
    with pytest.raises(ConfigError, match=r"both hold 40, 41, 42, 43, 44 and 5 more; a choice looks better than it is"):
        check_disjoint(range(50), range(40, 60))
