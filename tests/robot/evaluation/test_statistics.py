"""Intervals and tests against scipy, hand numbers and the tables of the papers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from robot.evaluation.statistics import PairedOutcomes, holm_adjusted, mcnemar_exact, newcombe_interval, null_gain, wilson_interval


@pytest.mark.parametrize(("successes", "trials", "low", "high"), [(86, 100, 0.779, 0.915), (14, 20, 0.481, 0.855), (50, 50, 0.929, 1.0)])
def test_wilson_gives_the_values_of_the_specification(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-4)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy_at_every_count_and_confidence(counts, confidence):
    expected = binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert wilson_interval(*counts, confidence=confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_ends_exactly_at_the_ends_and_is_mirrored_by_failures():
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low), abs=1e-15)
    assert all(type(end) is float for end in wilson_interval(np.int64(3), np.int64(10)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 10), "successes must be a whole number >= 0, got -1"),
        ((0.86, 100), "successes must be a whole number >= 0, got 0.86; give counts, not rates"),
        ((float("nan"), 100), "got nan"),
        ((3, -4), "trials must be a whole number >= 0, got -4"),
        ((11, 10), "successes must be 0 to trials, got 11 of 10"),
        ((0, 0), "trials must be at least 1, got 0"),
        ((1, 2, 95), r"confidence must lie in \(0, 1\), got 95; 95 % is 0.95"),
    ],
)
def test_wilson_refuses_what_is_no_count(arguments, message):
    with pytest.raises(ValueError, match=message):
        wilson_interval(*arguments)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_test_of_the_seeds_that_disagree(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-10)


def test_mcnemar_by_hand():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 9) == mcnemar_exact(9, 1) == pytest.approx(2 * (1 + 10) / 1024)


@pytest.mark.parametrize("counts", [(-1, 2), (1, -2), (0.5, 2)])
def test_mcnemar_refuses_what_is_no_count(counts):
    with pytest.raises(ValueError, match=r"only_(first|second) must be a whole number >= 0"):
        mcnemar_exact(*counts)


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((1, 1, 7, 12), -0.507, -0.026), ((14, 5, 0, 22), 0.011, 0.226), ((0, 0, 0, 50), -0.0714, 0.0714)],
    ids=["negative correlation", "correlation within the correction", "textbook example", "no success at all"],
)
def test_newcombe_by_the_formula_of_the_paper(cells, low, high):
    table = PairedOutcomes(**dict(zip(("both", "only_first", "only_second", "neither"), cells, strict=True)))
    assert newcombe_interval(table) == pytest.approx((low, high), abs=6e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_difference_lies_in_its_interval_and_changes_sign_with_the_order(pairs):
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    table, swapped = PairedOutcomes.of(first, second), PairedOutcomes.of(second, first)
    low, high = table.interval()
    assert -1 <= low <= table.difference <= high <= 1
    assert table.difference == pytest.approx((sum(first) - sum(second)) / len(pairs))
    assert swapped.interval() == pytest.approx((-high, -low))
    assert swapped.p_value == table.p_value


def test_newcombe_covers_the_true_difference_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    cells = generator.multinomial(60, [0.5, 0.2, 0.1, 0.2], size=4000)  # true difference 0.1
    names = ("both", "only_first", "only_second", "neither")
    ends = np.array([PairedOutcomes(**dict(zip(names, row, strict=True))).interval() for row in np.unique(cells, axis=0)])
    weights = np.unique(cells, axis=0, return_counts=True)[1]
    covered = ((ends[:, 0] <= 0.1) & (ends[:, 1] >= 0.1)) @ weights / len(cells)
    assert 0.94 < covered < 0.975


def test_paired_outcomes_count_the_four_cells():
    table = PairedOutcomes.of([True, True, False, False, True], [True, False, True, False, False])
    assert (table.both, table.only_first, table.only_second, table.neither) == (1, 2, 1, 1)
    assert table.difference == pytest.approx(0.2)
    with pytest.raises(ValueError, match="got 1 and 2 outcomes"):
        PairedOutcomes.of([True], [True, False])
    with pytest.raises(ValueError, match="at least one common seed"):
        PairedOutcomes.of([], [])


def test_holm_by_hand():
    assert holm_adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_adjusted([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm_adjusted([]) == []
    with pytest.raises(ValueError, match=r"p-values must lie in \[0, 1\], got \[1.5\]"):
        holm_adjusted([0.2, 1.5])


@pytest.mark.parametrize(("candidates", "rate", "trials", "gain"), [(9, 0.65, 100, 0.070), (9, 0.8, 200, 0.041), (4, 0.5, 20, 0.114)])
def test_the_best_of_equals_looks_better_by_the_specifications_amount(candidates, rate, trials, gain):
    assert null_gain(candidates, rate, trials) == pytest.approx(gain, abs=5e-4)
    simulated = binom.rvs(trials, rate, size=(20_000, candidates), random_state=0).max(axis=1).mean() / trials - rate
    assert simulated == pytest.approx(gain, abs=5e-3)


def test_one_candidate_gains_nothing():
    assert null_gain(1, 0.3, 50) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match=r"got 0, 10 and 0\.5"):
        null_gain(0, 0.5, 10)
