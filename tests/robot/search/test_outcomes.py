"""Arms, their paired tests, and the disagreement signal."""

import numpy as np
import pytest
from scipy.stats import binomtest, mannwhitneyu

from robot.evaluation.episodes import EpisodeResult
from robot.search.outcomes import Arm, arm_title, outcomes, report_arms
from robot.search.signal import disagreement_signal

FIRST, SECOND = (1.0, 0.0), (0.0, 1.0)


def episode(arm, seed, success, **more):
    given = {"success_at": 1 if success else None, "success_at_end": success, "terminated": True, "truncated": False, "crashed": False}
    given |= {"return_": 0.0, "max_reward": 0.0, "length": 1, "chunks": 1}
    return EpisodeResult(arm=arm, seed=seed, success=success, **(given | more))


def run(arm, successes):
    return [episode(arm.name, seed, bool(success)) for seed, success in enumerate(successes)]


def test_arms_are_paired_with_the_parent_that_is_best_on_these_seeds():
    seeds = 100
    arms = {arm: run(arm, [False] * seeds) for arm in report_arms((0.5, 0.5), ())}
    composed, first, second = arms
    arms[composed] = run(composed, [True] * 80 + [False] * 20)
    arms[first] = run(first, [True] * 40 + [False] * 60)
    arms[second] = run(second, [False] * 30 + [True] * 60 + [False] * 10)
    rows = {row.arm: row for row in outcomes(arms, ("a", "b"))}
    assert rows[second].against is None
    against = rows[composed].against
    assert (against.only_arm, against.only_parent) == (30, 10)  # seeds 0 to 29, and 80 to 89
    assert against.difference == pytest.approx(0.2)
    assert against.p_value == pytest.approx(binomtest(30, 40).pvalue)
    other = binomtest(30, 80).pvalue  # the first parent alone: 30 seeds only it, 50 only the other
    assert rows[first].against.p_value == pytest.approx(other)
    assert against.p_holm == pytest.approx(2 * min(against.p_value, other))
    assert rows[first].against.p_holm == pytest.approx(max(against.p_holm, other))


def test_baselines_are_a_family_of_tests_of_their_own():
    arms = {arm: run(arm, [False] * 60) for arm in report_arms((0.5, 0.5), ("average",))}
    composed, first, second, average = arms
    counts = {composed: 45, first: 30, second: 30, average: 42}
    arms = {arm: run(arm, [True] * counts[arm] + [False] * (60 - counts[arm])) for arm in counts}
    against = {row.arm: row.against for row in outcomes(arms, ("a", "b"))}
    assert against[composed].p_holm == pytest.approx(2 * binomtest(15, 15).pvalue)
    assert against[average].p_holm == against[average].p_value == pytest.approx(binomtest(12, 12).pvalue)


def test_of_equal_parents_the_first_is_the_best():
    arms = {arm: run(arm, [True, False]) for arm in report_arms((0.5, 0.5), ())}
    assert [row.arm.weights for row in outcomes(arms, ("a", "b")) if row.against is None] == [FIRST]


def test_every_way_of_acting_is_run_once():
    everything = ("uniform", "average", "sde")
    assert [arm.name for arm in report_arms((0.5, 0.5), everything)] == [
        "0.5, 0.5",
        "1, 0",
        "0, 1",
        "average 0.5, 0.5",
        "sde 1, 0",
        "sde 0, 1",
    ]
    assert [arm.name for arm in report_arms(FIRST, everything)] == ["1, 0", "0, 1", "0.5, 0.5", "average 0.5, 0.5", "sde 1, 0", "sde 0, 1"]
    assert [arm.role for arm in report_arms((1 / 3, 1 / 3, 1 / 3), everything)].count("uniform") == 0
    for weights in ((0.5, 0.5), FIRST, (0.2, 0.8)):
        names = [arm.name for arm in report_arms(weights, everything)]
        assert len(set(names)) == len(names)


def test_titles_name_the_members():
    assert arm_title(Arm(role="sde", weights=SECOND), ("dp", "flow")) == "flow alone, SDE sampler"
    assert arm_title(Arm(role="composed", weights=(0.3, 0.7)), ("dp", "flow")) == "composed, 0.3, 0.7"


def told(failures, successes):
    values = [(False, value) for value in failures] + [(True, value) for value in successes]
    return [episode("a", seed, success, disagreement=value) for seed, (success, value) in enumerate(values)]


def test_the_signal_is_the_area_under_the_roc_curve():
    generator = np.random.default_rng(0)
    failures, successes = generator.normal(1, 1, 40).round(1), generator.normal(0, 1, 60).round(1)  # rounded: with ties
    signal = disagreement_signal(told(failures, successes))
    assert signal.auc == pytest.approx(mannwhitneyu(failures, successes).statistic / (40 * 60))
    assert signal.failures == pytest.approx(failures.mean())
    assert signal.episodes == (40, 60)


def test_the_signals_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    truth = 0.76025  # P(N(1,1) > N(0,1)) = Φ(1/√2)
    covered = 0
    for _ in range(400):
        signal = disagreement_signal(told(generator.normal(1, 1, 40), generator.normal(0, 1, 60)))
        covered += signal.low <= truth <= signal.high
    assert 0.92 <= covered / 400 <= 0.975


@pytest.mark.parametrize(
    ("failures", "successes"),
    [([1.0, 1.2] * 2, [0.0] * 9), ([1.0] * 9, [0.0, 0.1] * 2), ([], []), ([0.5] * 5, [0.5] * 5), ([0.5] * 5, [0.5 + 1e-7] * 5)],
    ids=["few failures", "few successes", "nothing", "always the same", "the same but for rounding"],
)
def test_there_is_no_signal_where_nothing_can_be_told(failures, successes):
    assert disagreement_signal(told(failures, successes)) is None


def test_crashed_episodes_and_single_policies_have_no_say_in_the_signal():
    results = told([1.0, 2.0, 3.0, 0.1, 0.2], [0.0, 0.5, 0.6, 0.3, 0.4])
    crashed = [episode("a", 90, False, disagreement=0.0, crashed=True, terminated=False), episode("a", 91, True)]
    assert disagreement_signal([*results, *crashed]) == disagreement_signal(results)
