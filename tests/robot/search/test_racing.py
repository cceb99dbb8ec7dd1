"""Races on common seeds."""

import numpy as np
import pytest
from scipy.stats import norm

from robot.search.choice import best_candidate
from robot.search.racing import Exhaustive, Race, SuccessiveHalving, WilsonRace
from robot.search.simplex import lattice


class Bench:
    """Outcomes known beforehand, ``(candidate, seed)``; counts what is asked for."""

    def __init__(self, outcomes):
        self.outcomes = np.asarray(outcomes, dtype=bool)
        self.asked = []

    def __call__(self, candidates, seeds):
        self.asked += [(candidate, seed) for candidate in candidates for seed in seeds]
        return self.outcomes[np.ix_(candidates, seeds)]


def toy(biases, seeds, generator):
    """Spec G14: the action's mean is off by w·b1 + (1 − w)·b2, its noise .1 is common to all weights, it succeeds within .2."""
    weights = np.linspace(0, 1, 11)[:, None]
    mean = weights * biases[0] + (1 - weights) * biases[1]
    return np.abs(mean + 0.1 * generator.standard_normal(seeds)) < 0.2


def rates(biases):
    weights = np.linspace(0, 1, 11)
    mean = weights * biases[0] + (1 - weights) * biases[1]
    return norm.cdf((0.2 - mean) / 0.1) - norm.cdf((-0.2 - mean) / 0.1)


def chosen(result):
    candidates = [lattice(2)[index] for index in result.survivors]
    return result.survivors[best_candidate(candidates, [result.rates[index] for index in result.survivors])]


RACES = [Exhaustive(), WilsonRace(batch=10), SuccessiveHalving(first=10)]


@pytest.mark.parametrize("race", RACES, ids=lambda race: type(race).__name__)
def test_nobody_is_tried_twice_on_a_seed_and_the_counts_are_those_of_the_bench(race):
    bench = Bench(toy((0.25, -0.25), 200, np.random.default_rng(0)))
    result = race.run(11, range(200), bench)
    assert isinstance(race, Race)
    assert len(bench.asked) == len(set(bench.asked)) == result.episodes
    for index in range(11):
        assert result.successes[index] == bench.outcomes[index, : result.trials[index]].sum()
    assert {result.trials[index] for index in result.survivors} == {max(result.trials)}


@pytest.mark.parametrize("race", RACES, ids=lambda race: type(race).__name__)
@pytest.mark.parametrize(("biases", "good"), [((0.25, -0.25), {4, 5, 6}), ((0.05, -1.0), {9, 10}), ((0.1, -0.3), {6, 7, 8, 9})])
def test_a_race_ends_at_one_of_the_good_weights_of_each_finding(race, biases, good):
    for repeat in range(20):
        assert chosen(race.run(11, range(200), Bench(toy(biases, 200, np.random.default_rng(repeat))))) in good


@pytest.mark.parametrize("race", RACES[1:], ids=lambda race: type(race).__name__)
def test_a_race_costs_less_than_half_of_the_grid_and_loses_next_to_nothing(race):
    truth = rates((0.05, -1.0))
    costs, regrets = [], []
    for repeat in range(40):
        result = race.run(11, range(400), Bench(toy((0.05, -1.0), 400, np.random.default_rng(repeat))))
        costs.append(result.episodes / (11 * 400))
        regrets.append(truth.max() - truth[chosen(result)])
    assert np.mean(costs) < 0.5
    assert np.mean(regrets) < 0.005


def test_a_candidate_goes_as_soon_as_its_interval_lies_below_the_best_and_not_before():
    # 10 of 10 has the Wilson interval (.722, 1); 4 of 10 (.168, .687) lies below it, 5 of 10 (.237, .763) does not
    outcomes = np.zeros((3, 20), dtype=bool)
    outcomes[0, :] = True
    outcomes[1, :4] = True
    outcomes[2, :5] = True
    result = WilsonRace(batch=10).run(3, range(20), Bench(outcomes))
    assert result.rounds[0].survivors == (0, 2)
    assert result.trials == (20, 10, 20)
    assert result.survivors == (0,)


def test_a_race_stops_when_one_is_left():
    outcomes = np.zeros((3, 1000), dtype=bool)
    outcomes[1] = True
    result = WilsonRace(batch=20).run(3, range(1000), Bench(outcomes))
    assert result.survivors == (1,)
    assert result.episodes == 60


def test_equal_candidates_race_until_the_seeds_are_used_up():
    result = WilsonRace(batch=30).run(4, range(100), Bench(np.ones((4, 100))))
    assert [len(round_.seeds) for round_ in result.rounds] == [30, 30, 30, 10]
    assert result.survivors == (0, 1, 2, 3)


def test_halving_doubles_the_seeds_and_keeps_the_better_half():
    outcomes = np.zeros((8, 1000), dtype=bool)
    for index in range(8):
        outcomes[index, : 10 * index] = True  # all of them lie apart in the first hundred seeds
    result = SuccessiveHalving(first=100).run(8, range(1000), Bench(outcomes))
    assert [round_.survivors for round_ in result.rounds] == [(4, 5, 6, 7), (6, 7), (7,)]
    assert [len(round_.seeds) for round_ in result.rounds] == [100, 100, 200]
    assert result.trials == (100, 100, 100, 100, 200, 200, 400, 400)


def test_those_tied_with_the_best_all_stay_and_those_tied_below_are_thinned_evenly():
    outcomes = np.zeros((7, 80), dtype=bool)
    outcomes[6] = True
    result = SuccessiveHalving(first=40).run(7, range(80), Bench(outcomes))
    assert result.rounds[0].survivors == (1, 3, 5, 6)  # one above the cut, three places for 0 … 5
    assert SuccessiveHalving(first=40).run(4, range(40), Bench(np.ones((4, 40)))).survivors == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WilsonRace(batch=0), "batch >= 1"),
        (lambda: WilsonRace(confidence=1.0), "confidence in"),
        (lambda: SuccessiveHalving(first=0), "first >= 1"),
        (lambda: SuccessiveHalving(keep=1.0), "keep in"),
        (lambda: Exhaustive().run(3, [], Bench(np.ones((3, 0)))), "3 candidates and 0 seeds"),
        (lambda: Exhaustive().run(2, [1, 2], lambda *_: np.ones((2, 3))), r"gave outcomes of shape \(2, 3\)"),
    ],
)
def test_impossible_races_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
