"""Which weight is taken."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from robot.search.choice import best_candidate, smooth_best
from robot.search.simplex import lattice

# arXiv:2510.01068, Tab. 3: weight of the image policy 0 (point cloud alone), .1, ..., .9, 1 (image alone); success rates of 100 rollouts
TABLE_3 = {
    "Empty Cup": (0.62, 0.70, 0.86, 0.84, 0.86, 0.84, 0.84, 0.76, 0.68, 0.61, 0.42),
    "Dual Bottles Hard": (0.64, 0.69, 0.63, 0.71, 0.66, 0.64, 0.65, 0.63, 0.56, 0.58, 0.49),
    "Shoe Place": (0.36, 0.47, 0.52, 0.56, 0.59, 0.60, 0.59, 0.59, 0.53, 0.41, 0.37),
    "Dual Shoes": (0.23, 0.19, 0.17, 0.19, 0.20, 0.20, 0.17, 0.16, 0.14, 0.09, 0.08),
    "Pick Apple": (0.26, 0.25, 0.17, 0.21, 0.15, 0.13, 0.08, 0.08, 0.06, 0.08, 0.05),
    "Bottles Easy": (0.36, 0.52, 0.64, 0.70, 0.75, 0.82, 0.81, 0.80, 0.85, 0.80, 0.77),
    "Block Hammer": (0.76, 0.61, 0.30, 0.18, 0.15, 0.12, 0.07, 0.0, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize(
    ("task", "weight"),
    [
        ("Empty Cup", 0.4),  # .2 and .4 tie
        ("Dual Bottles Hard", 0.3),
        ("Shoe Place", 0.5),
        ("Dual Shoes", 0.0),
        ("Pick Apple", 0.0),
        ("Bottles Easy", 0.8),
        ("Block Hammer", 0.0),
    ],
)
def test_the_best_weight_of_the_papers_recorded_rates(task, weight):
    candidates = lattice(2)
    assert candidates[best_candidate(candidates, TABLE_3[task])][0] == weight


def test_empty_cup_ties_at_two_weights_and_nowhere_else():
    rates = TABLE_3["Empty Cup"]
    assert [index / 10 for index, rate in enumerate(rates) if rate == max(rates)] == [0.2, 0.4]


def test_of_a_plateau_its_middle_is_taken():
    rates = [0.5] * 3 + [0.9] * 5 + [0.5] * 3
    assert lattice(2)[best_candidate(lattice(2), rates)] == (0.5, 0.5)
    assert lattice(2)[best_candidate(lattice(2), [0.9] * 7 + [0.1] * 4)] == (0.3, 0.7)


def test_of_a_plateau_of_three_members_the_point_nearest_its_centroid_is_taken():
    candidates = lattice(3)
    plateau = {(0.6, 0.2, 0.2), (0.7, 0.2, 0.1), (0.5, 0.3, 0.2), (0.6, 0.3, 0.1)}  # centroid (.6, .25, .15)
    best = candidates[best_candidate(candidates, [1.0 if point in plateau else 0.0 for point in candidates])]
    assert best == (0.6, 0.2, 0.2)  # as near as (.6, .3, .1), and nearer to equal weights


def test_the_choice_does_not_depend_on_which_member_is_named_first():
    candidates = lattice(2)
    for rates in TABLE_3.values():
        mirrored = candidates[best_candidate(candidates, rates[::-1])]
        assert mirrored[::-1] == candidates[best_candidate(candidates, rates)]


def test_no_candidate_and_too_few_rates_are_refused():
    with pytest.raises(ValueError, match="0 rates for 0 candidates"):
        best_candidate([], [])
    with pytest.raises(ValueError, match="1 rates for 11 candidates"):
        best_candidate(lattice(2), [0.5])


@pytest.mark.parametrize("peak", [0.25, 0.5, 0.8])
def test_the_smooth_maximum_finds_the_peak_of_a_parabola_in_the_logit(peak):
    weights = np.linspace(0, 1, 11)
    trials = [100_000] * 11
    successes = [round(100_000 * rate) for rate in expit(1.5 - 6 * (weights - peak) ** 2)]
    assert smooth_best(list(weights), successes, trials) == pytest.approx(peak, abs=2e-3)


@pytest.mark.parametrize(("slope", "end"), [(2.0, 1.0), (-2.0, 0.0)])
def test_a_rising_or_falling_curve_ends_at_a_parent(slope, end):
    weights = np.linspace(0, 1, 11)
    successes = [round(1000 * rate) for rate in expit(slope * weights)]
    assert smooth_best(list(weights), successes, [1000] * 11) == end


def test_a_lucky_candidate_moves_the_maximum_but_not_the_smooth_one():
    weights = np.linspace(0, 1, 11)
    mean = 0.25 * weights - 0.25 * (1 - weights)  # spec G14, finding 1: the peak is at .5
    rates = norm.cdf((0.2 - mean) / 0.1) - norm.cdf((-0.2 - mean) / 0.1)
    successes = [round(100 * rate) for rate in rates]
    successes[7] = 98  # weight .7, luck
    assert best_candidate(lattice(2), [k / 100 for k in successes]) == 7
    assert smooth_best(list(weights), successes, [100] * 11) == pytest.approx(0.5, abs=0.1)


def test_two_points_fix_no_parabola():
    assert smooth_best([0.0, 0.5, 1.0], [1, 2, 3], [10, 10, 0]) is None
