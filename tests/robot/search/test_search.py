"""A weight search end to end, on the toy whose truth is known."""

import json
import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl.config import instantiate, load_config
from flowrl.errors import ConfigError
from robot.composition import Sampling
from robot.demonstrations.data import Demonstrations, Episode
from robot.envs.toy import Toy, toy_success_rate
from robot.envs.toy_policy import ToyPolicy
from robot.evaluation.log import EPISODES_FILE, EpisodeLog
from robot.gpc import Composition, MemberConfig
from robot.search import CompositionEvaluation, DenoisingPrior, Exhaustive, SuccessiveHalving, WeightSearch, WilsonRace
from robot.search import arena as arena_module
from robot.search.choice import best_candidate
from robot.search.simplex import lattice
from robot.types import Observation

FINDINGS = {"both decent": (0.25, -0.25), "one useless": (0.05, -1.0), "one stronger": (0.1, -0.3)}
TRUTH = {  # spec G14, w on the first policy from 0 to 1
    "both decent": (0.3085, 0.5000, 0.6912, 0.8400, 0.9270, 0.9545, 0.9270, 0.8400, 0.6912, 0.5000, 0.3085),
    "one stronger": (0.1587, 0.2743, 0.4207, 0.5792, 0.7254, 0.8400, 0.9146, 0.9502, 0.9502, 0.9146, 0.8400),
}
BEST = {"both decent": {0.5}, "one useless": {1.0}, "one stronger": {0.7, 0.8}}


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Each episode is synced to the disk; here thousands of them take a millisecond."""
    monkeypatch.setattr("os.fsync", lambda file: None)


def read_episodes(run_dir):
    return list(EpisodeLog(run_dir / EPISODES_FILE).results.values())


def composition(biases=(0.1, -0.3), *, families=("flow", "flow"), steps=50):
    names = ("first", "second", "third")
    members = tuple(
        MemberConfig(policy=ToyPolicy(bias=bias, family=family, name=name), weight=1 / len(biases))
        for bias, family, name in zip(biases, (*families, "flow"), names, strict=False)
    )
    return Composition(members=members, sampling=Sampling(steps=steps, clip=None))


def search(run_dir, **changes):
    """A quick one: few denoising steps, so the law is narrower than the toy's."""
    given = {"env": Toy(), "composition": composition(steps=4), "selection_seeds": "0:30", "report_seeds": "1000:1040", "rows": 64}
    return WeightSearch(run_dir=run_dir, **(given | {"step": 0.25, "race": WilsonRace(batch=10)} | changes))


# ------------------------------------------------------------------------------------------------------------ G14: the truth is found


def truth(biases, weight):
    return toy_success_rate(weight * biases[0] + (1 - weight) * biases[1])


def test_the_closed_form_is_the_specs_table():
    for name, expected in TRUTH.items():
        assert [truth(FINDINGS[name], index / 10) for index in range(11)] == pytest.approx(expected, abs=6e-5)
    assert [truth(FINDINGS["one useless"], w) for w in (0.7, 0.8, 0.9, 1.0)] == pytest.approx((0.2578, 0.6553, 0.9211, 0.9270), abs=6e-5)


def check_findings(name, run_dir, episodes):
    """Every candidate and every reported arm within four standard errors of the truth; the choice among the best or next to them."""
    biases = FINDINGS[name]
    job = search(
        run_dir,
        composition=composition(biases, families=("diffusion", "flow")),
        selection_seeds=f"0:{episodes}",
        report_seeds=f"100000:{100000 + episodes}",
        step=0.1,
        race=Exhaustive(),
        baselines=("uniform",),
        rows=512,
    )
    result = job.run()
    measured = [(row.weights, row.rate) for row in result.selection.candidates]
    measured += [(row.arm.weights, row.rate) for row in result.outcomes if row.arm.role in ("composed", "parent", "uniform")]
    assert len(measured) >= 11 + 3
    for weights, rate in measured:
        expected = truth(biases, weights[0])
        assert rate == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / episodes) + 0.006), weights
    return result


@pytest.mark.parametrize("name", FINDINGS)
def test_rollouts_give_the_closed_form_and_the_search_picks_the_best_weight(name, tmp_path):
    result = check_findings(name, tmp_path, 200)
    assert max(truth(FINDINGS[name], w / 10) for w in range(11)) - truth(FINDINGS[name], result.weights[0]) < 0.03
    smooth = {"both decent": 0.5, "one useless": 1.0, "one stronger": 0.82}  # the parabola's own maximum on the exact curve
    assert result.selection.smooth_best == pytest.approx(smooth[name], abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", FINDINGS)
def test_two_thousand_rollouts_a_weight_give_the_closed_form(name, tmp_path):
    result = check_findings(name, tmp_path, 2000)
    assert max(truth(FINDINGS[name], w / 10) for w in range(11)) - truth(FINDINGS[name], result.weights[0]) < 0.01


@pytest.mark.parametrize("name", FINDINGS)
def test_with_many_seeds_the_race_ends_at_exactly_the_best_weight(name):
    """The same policies without the environment: 0.9 and 1.0 of the second finding differ by 0.6 points, which takes many seeds."""
    candidates, policy = lattice(2), composition(FINDINGS[name]).load()

    def try_out(chosen, seeds):
        targets = torch.rand(len(seeds), 1, 1, generator=torch.Generator().manual_seed(seeds[0])) * 2 - 1
        outcomes = []
        for index in chosen:
            weights = torch.tensor([candidates[index]]).expand(len(seeds), -1)
            noise = torch.Generator().manual_seed(seeds[0])  # common to all candidates
            actions = policy.act(Observation({"target": targets}), noise, weights=weights).values
            outcomes.append((actions - targets).abs()[:, 0, 0].numpy() < 0.2)
        return outcomes

    found = WilsonRace(batch=5000).run(len(candidates), range(40_000), try_out)
    best = found.survivors[best_candidate([candidates[i] for i in found.survivors], [found.rates[i] for i in found.survivors])]
    assert candidates[best][0] in BEST[name]
    assert found.episodes < 0.75 * 11 * 40_000


# ----------------------------------------------------------------------------------------------------------- seeds that do not overlap


def test_seeds_that_are_in_both_sets_are_named(tmp_path):
    with pytest.raises(ConfigError, match="both hold 25, 26, 27, 28, 29"):
        search(tmp_path, report_seeds="25:60")


def test_no_episode_of_the_report_was_seen_by_the_selection(tmp_path):
    search(tmp_path).run()
    by_arm = {}
    for episode in read_episodes(tmp_path):
        by_arm.setdefault(episode.arm, []).append(episode.seed)
    assert {seed for arm in by_arm if arm == "0.25, 0.75" for seed in by_arm[arm]} <= set(range(30))
    assert set(by_arm["sde 1, 0"]) == set(range(1000, 1040))
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(row["summary"]["episodes"] == 40 for row in results["outcomes"])


# -------------------------------------------------------------------------------------------------------------------- what is reported


def test_the_report_has_the_composition_every_parent_and_every_baseline_once(tmp_path):
    result = search(tmp_path).run()
    assert [(row.arm.role, row.title) for row in result.outcomes] == [
        ("composed", "composed, 0.75, 0.25"),
        ("parent", "first alone"),
        ("parent", "second alone"),
        ("uniform", "equal weights"),
        ("average", "actions averaged, 0.75, 0.25"),
        ("sde", "first alone, SDE sampler"),
        ("sde", "second alone, SDE sampler"),
    ]
    assert result.best_parent.title == "first alone"
    assert result.judged.arm.weights == result.weights == (0.75, 0.25)


def test_each_way_of_acting_draws_its_actions_in_its_own_way(tmp_path):
    """On one seed all get the same noise, so equal returns would mean equal policies."""
    search(tmp_path).run()
    returns = {(e.arm, e.seed): e.return_ for e in read_episodes(tmp_path)}
    arms = ("0.75, 0.25", "1, 0", "0, 1", "0.5, 0.5", "average 0.75, 0.25", "sde 1, 0", "sde 0, 1")
    for place, arm in enumerate(arms):
        for other in arms[place + 1 :]:
            assert abs(returns[arm, 1000] - returns[other, 1000]) > 1e-6, (arm, other)


def test_where_a_parent_is_best_the_report_says_so(tmp_path):
    result = search(tmp_path, composition=composition((0.0, -1.0), steps=4)).run()
    assert result.weights == (1.0, 0.0)
    assert result.judged.arm.role == "parent"
    assert [row.arm.role for row in result.outcomes].count("parent") == 2
    assert "composing gained nothing here" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_results_report_and_plot_are_written_and_agree(tmp_path):
    result = search(tmp_path).run()
    results = json.loads((tmp_path / "results.json").read_text())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert results["weights"] == [0.75, 0.25]
    assert results["selection"]["luck"]["candidates"] == 5
    assert results["identity"]["checkpoints"] == {}
    assert "http" not in re.sub(r"http://www.w3.org\S*", "", page)
    assert page.count("<svg") == 1
    assert f'<data value="{result.judged.rate}">' in page
    assert "selection seeds" in page
    with Image.open(tmp_path / "success_against_weight.png") as plot:
        assert plot.size[0] > 1000
    assert "network time per chunk" in page
    assert "--page: #" in page  # flowrl's style sheet
    assert instantiate(load_config(tmp_path / "config.yaml")) == search(tmp_path)  # the folder's own config is the search


def test_three_members_are_searched_on_the_triangle(tmp_path):
    result = search(tmp_path, composition=composition((0.3, -0.3, 2.0), steps=4), race=SuccessiveHalving(first=10), rows=128).run()
    assert len(result.selection.candidates) == 15
    assert result.weights == (0.5, 0.5, 0.0)
    assert result.selection.smooth_best is None
    assert [row.arm.role for row in result.outcomes].count("sde") == 3
    assert (tmp_path / "success_against_weight.png").is_file()
    assert "The best candidates" in (tmp_path / "report.html").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Aimed:
    """Demonstrations of the expert: it takes the target itself."""

    def load(self):
        ends = {"rewards": np.zeros(1, np.float32), "dones": np.ones(1, np.bool_), "success": True}
        targets = np.linspace(-1, 1, 100, dtype=np.float32).reshape(-1, 1, 1)
        episodes = tuple(Episode(observations={"target": target}, actions=target, **ends) for target in targets)
        return Demonstrations(episodes=episodes, action=Toy().action)


def test_a_prior_narrows_the_candidates_and_is_reported(tmp_path):
    result = search(tmp_path, step=0.1, prior=DenoisingPrior(demonstrations=Aimed(), radius=0.19)).run()
    assert [row.weights[0] for row in result.selection.candidates] == [0.6, 0.7, 0.8, 0.9]  # the prior is at .75
    assert result.selection.prior.weights[0] == pytest.approx(0.75, abs=0.02)
    assert "Prior from demonstrations" in (tmp_path / "report.html").read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------- stopping and going on


@dataclass
class StopAfter:
    """run_episodes that is interrupted after so many episodes."""

    episodes: int

    def __call__(self, pool, policy, jobs, *, on_episode, seed):
        def counted(result):
            if self.episodes == 0:
                raise KeyboardInterrupt
            self.episodes -= 1
            on_episode(result)

        return self.real(pool, policy, jobs, on_episode=counted, seed=seed)


def comparable(run_dir):
    results = json.loads((run_dir / "results.json").read_text())
    for name in ("run_dir", "ran", "seconds", "identity"):
        del results[name]
    for row in results["outcomes"]:
        del row["summary"]["latency_s"]
    return results


def test_a_search_that_was_stopped_goes_on_to_the_same_result(tmp_path, monkeypatch):
    search(tmp_path / "whole").run()
    for after in (0, 37, 200):
        stopped = tmp_path / f"stopped_{after}"
        with monkeypatch.context() as patch:
            stop = StopAfter(after)
            stop.real = arena_module.run_episodes
            patch.setattr(arena_module, "run_episodes", stop)
            with pytest.raises(KeyboardInterrupt):
                search(stopped).run()
        result = search(stopped).run(resume=True)
        assert comparable(stopped) == comparable(tmp_path / "whole")
        assert result.ran == len(read_episodes(tmp_path / "whole")) - after


def test_a_finished_search_is_only_summed_up_again(tmp_path):
    search(tmp_path).run()
    assert search(tmp_path).run(resume=True).ran == 0


def test_other_seeds_and_another_race_reuse_what_is_there(tmp_path):
    first = search(tmp_path).run()
    again = search(tmp_path, race=Exhaustive(), report_seeds="1000:1050").run(resume=True)
    assert again.ran == again.selection.episodes - first.selection.episodes + 10 * len(again.outcomes)


def test_a_folder_with_episodes_is_not_used_again_without_resume(tmp_path):
    search(tmp_path).run()
    with pytest.raises(ConfigError, match="already holds episodes; go on with --resume"):
        search(tmp_path).run()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"env": Toy(tolerance=0.3)}, "env.tolerance"),
        ({"composition": composition(steps=5)}, "steps: 4 -> 5"),
    ],
)
def test_episodes_of_another_environment_policy_or_noise_are_not_mixed_in(change, place, tmp_path):
    search(tmp_path).run()
    with pytest.raises(ConfigError, match=place):
        search(tmp_path, **change).run(resume=True)


def test_an_episode_does_not_depend_on_its_neighbours(tmp_path):
    """Nor on whether a member without weight in it has some in theirs: diffusion and flow take different noise levels alone."""
    few = {"composition": composition(families=("diffusion", "flow"), steps=4), "selection_seeds": "0:10", "report_seeds": "1000:1006"}
    search(tmp_path / "wide", rows=64, **few).run()
    search(tmp_path / "narrow", rows=1, **few).run()
    wide, narrow = ({e.key: (e.success, round(e.return_, 5)) for e in read_episodes(tmp_path / name)} for name in ("wide", "narrow"))
    assert wide == narrow


# ------------------------------------------------------------------------------------------------------------------------- fixed weights


def test_fixed_weights_are_compared_with_each_parent_on_the_given_seeds(tmp_path):
    job = CompositionEvaluation(env=Toy(), composition=composition(), run_dir=tmp_path, seeds="5:105", rows=128)
    result = job.run()
    assert [row.arm.role for row in result.outcomes] == ["composed", "parent", "parent"]
    assert result.selection is None
    assert result.report_seeds == 100
    assert "flowrl compose eval" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_fixed_weights_of_a_search_are_evaluated_beside_it(tmp_path):
    fixed = search(tmp_path).fixed("7:9")
    assert fixed.run_dir == tmp_path / "fixed"
    assert fixed.seeds == "7:9"
    assert search(tmp_path).fixed().seeds == "1000:1040"


@pytest.mark.parametrize("operator", ["and", "or", "fkc"])
def test_superposition_is_evaluated_against_parents_under_the_plain_operator(operator, tmp_path):
    given = replace(composition(steps=6), operator=operator)
    job = CompositionEvaluation(env=Toy(), composition=given, run_dir=tmp_path, seeds="0:20", baselines=("uniform", "average", "sde"))
    result = job.run()
    plain = replace(job, composition=composition(steps=6), run_dir=tmp_path / "plain").run()
    for role in ("parent", "sde"):
        assert [row.rate for row in result.outcomes if row.arm.role == role] == [row.rate for row in plain.outcomes if row.arm.role == role]


@pytest.mark.parametrize("operator", ["or", "fkc"])
def test_a_candidate_that_is_a_parent_acts_as_the_report_runs_that_parent(operator, tmp_path):
    """Both bear the parent's name in the log, so an episode of either must be an episode of the other."""
    given = replace(composition(steps=6), operator=operator)
    corners = search(tmp_path / "search", composition=given, candidates=((1.0, 0.0), (0.0, 1.0)), race=Exhaustive(), baselines=())
    replace(corners, selection_seeds="0:10", report_seeds="1000:1001").run()
    job = CompositionEvaluation(env=Toy(), composition=given, run_dir=tmp_path / "report", seeds="0:10")
    job.run()
    returns = [{(e.arm, e.seed): e.return_ for e in read_episodes(tmp_path / run)} for run in ("search", "report")]
    for key in ((arm, seed) for arm in ("1, 0", "0, 1") for seed in range(10)):
        assert returns[0][key] == pytest.approx(returns[1][key], abs=1e-6)


# ----------------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"composition": Composition(members=composition().members[:1])}, "two members or more, got 1"),
        ({"step": 0.3}, "must divide 1, got 0.3"),
        ({"candidates": ((0.5, 0.6),)}, r"sum to one, one for each of the 2 members, got \[0.5, 0.6\]"),
        ({"candidates": ((1.2, -0.2),)}, "must be >= 0"),
        ({"composition": replace(composition(), operator="and")}, "'and' has no weights to search for"),
        ({"selection_seeds": "5:5"}, "empty"),
        ({"report_seeds": "x"}, "A:B"),
    ],
)
def test_impossible_searches_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        search(tmp_path, **changes)


@dataclass(frozen=True, kw_only=True)
class Missing(Toy):
    """A simulator that is not there."""

    def problems(self):
        return ["robosuite is not installed; pip install it"]


def test_a_missing_simulator_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="toy cannot run here: robosuite is not installed"):
        search(tmp_path / "run", env=Missing()).run()
    assert not (tmp_path / "run").exists()


def test_candidates_that_would_share_their_episodes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="two candidates are equal to the digits"):
        search(tmp_path, candidates=((0.12341, 0.87659), (0.12342, 0.87658)))
