"""What luck alone seems to gain."""

import numpy as np
import pytest

from robot.evaluation.statistics import null_gain
from robot.search.multiplicity import luck_on_common_seeds


@pytest.mark.parametrize(
    ("rate", "trials", "candidates", "gain"),
    [(0.65, 100, 9, 0.070), (0.8, 200, 9, 0.041), (0.5, 20, 4, 0.114)],
)
def test_the_luck_of_the_best_is_what_the_audit_of_the_paper_found(rate, trials, candidates, gain):
    simulated = np.random.default_rng(0).binomial(trials, rate, (100_000, candidates)).max(1).mean() / trials - rate
    assert simulated == pytest.approx(gain, abs=0.005)
    assert null_gain(candidates, rate, trials) == pytest.approx(simulated, abs=0.001)


def test_independent_candidates_have_the_same_luck_by_shuffling():
    outcomes = np.random.default_rng(1).random((9, 400)) < 0.65
    assert luck_on_common_seeds(outcomes) == pytest.approx(null_gain(9, 0.65, 400), abs=0.006)


def test_candidates_that_do_the_same_on_every_seed_have_no_luck():
    assert luck_on_common_seeds(np.tile(np.random.default_rng(2).random(50) < 0.5, (9, 1))) == pytest.approx(0, abs=1e-12)


def test_no_outcomes_are_refused():
    with pytest.raises(ValueError, match=r"got shape \(0, 5\)"):
        luck_on_common_seeds(np.zeros((0, 5), dtype=bool))
