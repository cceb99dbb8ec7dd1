import math

import pytest
import torch
from scipy import stats

from flowrl.train.paired import mean_ci95, paired_difference, spread_of


def test_the_interval_of_a_mean_has_students_width():
    mean, half = mean_ci95(torch.tensor([1.0, 3.0]))  # std sqrt(2), two values: t quantile 12.706 for one degree of freedom
    assert (mean, half) == pytest.approx((2.0, 12.7062047 * math.sqrt(2) / math.sqrt(2)))


def test_equal_scores_have_an_interval_of_width_0():
    assert mean_ci95(torch.full((5,), 0.25)) == (0.25, 0.0)


def test_95_of_100_intervals_hold_the_true_mean():
    draws = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))
    hits = sum(abs(mean) <= half for mean, half in map(mean_ci95, draws))
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)  # 3 standard errors


def test_the_paired_interval_is_that_of_scipys_paired_test():
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(40, generator=generator, dtype=torch.float64)
    after = before + 0.3 + 0.5 * torch.randn(40, generator=generator, dtype=torch.float64)
    pair = paired_difference(before, after)
    low, high = stats.ttest_rel(after.numpy(), before.numpy()).confidence_interval(0.95)
    assert (pair.difference - pair.ci95, pair.difference + pair.ci95) == pytest.approx((low, high))
    assert pair.after - pair.before == pytest.approx(pair.difference)


def test_pairing_removes_what_both_models_share():
    shared = torch.randn(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pair = paired_difference(shared, shared + 0.01)
    assert pair.difference == pytest.approx(0.01)
    assert pair.ci95 < 1e-12  # unpaired, it would be about 0.4


def test_a_tie_counts_as_half_a_win():
    pair = paired_difference(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert (pair.win_rate, pair.pairs) == (0.5, 4)
    assert paired_difference(torch.zeros(4), torch.tensor([1.0, 1.0, 1.0, 0.0])).win_rate == 0.875


def test_a_difference_is_significant_when_its_interval_excludes_0():
    assert paired_difference(torch.zeros(3), torch.tensor([1.0, 1.1, 0.9])).significant
    assert not paired_difference(torch.zeros(3), torch.tensor([1.0, -1.0, 0.9])).significant


def test_scores_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="two values or more"):
        mean_ci95(torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"same images, got shapes \(2,\) and \(3,\)"):
        paired_difference(torch.zeros(2), torch.zeros(3))


def test_the_spread_is_that_over_images_and_follows_from_an_interval_too():
    before, after = torch.tensor([0.0, 2.0]), torch.tensor([3.0, 3.0])  # variances 2 and 0
    assert paired_difference(before, after).spread == pytest.approx(1.0)
    values = torch.randn(7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert spread_of(mean_ci95(values)[1], 7) == pytest.approx(values.std().item())
