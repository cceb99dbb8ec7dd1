"""Episodes in this process: what they give, on what it depends, and what goes wrong."""

from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from tiny_rollouts import DRIFT, TIME_UP, Reach, ReachSource, Steer

from robot.envs import Toy, toy_success_rate
from robot.envs.toy_policy import BiasedPolicy, ToyPolicy
from robot.evaluation import EnvironmentFailedError, EnvPool, EpisodeResult, Job, run_episodes
from robot.evaluation.rollout import policy_device
from robot.evaluation.slot import Act, Reset, Slot
from robot.gpc import GPCPolicy
from robot.types import ActionSpec

JOBS = [Job(seed=seed) for seed in range(30)]
STILL = ReachSource({}, stop_on_success=False)


def by_hand(seed, gain):
    """Positions after each control step of a noise-free Steer, from the environment's own start: a second route."""
    position = float(np.float32(gymnasium.utils.seeding.np_random(seed)[0].uniform(-1, 1)))
    places = []
    while len(places) < TIME_UP:
        step = np.clip(-gain * position / 2, -1, 1)
        for _ in range(2):
            position += step + DRIFT
            places.append(position)
    return places


def same(results):
    """Results without what measures time."""
    return [replace(result, latency_s={}) for result in results]


@pytest.mark.parametrize("gain", [0.5, 2.2], ids=["comes close", "shoots over"])
def test_every_figure_of_an_episode_is_that_of_a_simulation_by_hand(gain):
    stopping = run_episodes(ReachSource({}), Steer(gain=gain, noise=0), JOBS)
    staying = run_episodes(STILL, Steer(gain=gain, noise=0), JOBS)
    assert len({(one.success, other.success_at_end) for one, other in zip(stopping, staying, strict=True)}) > 1
    for job, short, long in zip(JOBS, stopping, staying, strict=True):
        places = by_hand(job.seed, gain)
        solved = [abs(place) < 0.2 for place in places]
        at = solved.index(True) + 1 if any(solved) else None
        assert (short.success, short.success_at, short.length) == (any(solved), at, at or TIME_UP)
        assert (short.terminated, short.truncated, short.crashed) == (any(solved), not any(solved), False)
        assert (long.success, long.success_at, long.success_at_end) == (any(solved), at, solved[-1])
        assert (long.terminated, long.truncated, long.length) == (False, True, TIME_UP)
        assert (long.return_, long.max_reward) == (sum(solved), float(any(solved)))
        assert (long.chunks, list(long.latency_s)) == (TIME_UP // 2, ["steer"])


def test_results_come_in_the_order_of_the_jobs_and_do_not_depend_on_what_runs_beside_them():
    together = same(run_episodes(ReachSource({}), Steer(), JOBS, rows=8))
    alone = same(run_episodes(ReachSource({}), Steer(), JOBS, rows=1))
    backwards = same(run_episodes(ReachSource({}), Steer(), JOBS[::-1], rows=5))
    assert [result.seed for result in together] == list(range(30))
    assert together == alone == backwards[::-1]
    assert {result.success for result in together} == {True, False}


def test_another_seed_of_the_noise_gives_other_episodes():
    first, second = (same(run_episodes(ReachSource({}), Steer(), JOBS, seed=seed)) for seed in (0, 1))
    assert first != second


def test_the_batch_stays_full_until_the_jobs_run_out():
    policy = Steer()
    results = run_episodes(ReachSource({}), policy, JOBS, rows=6)
    assert len({result.length for result in results}) > 2
    assert sum(policy.batches) == sum(result.chunks for result in results)
    full = policy.batches.index(next(size for size in policy.batches if size < 6))
    assert sum(policy.batches[:full]) >= sum(policy.batches) - 6 * TIME_UP // 2
    assert policy.batches == sorted(policy.batches, reverse=True)


def test_each_result_is_handed_over_as_soon_as_it_is_there():
    seen = []
    run_episodes(ReachSource({}), Steer(), JOBS, rows=4, on_episode=lambda result: seen.append((result.seed, len(seen))))
    assert sorted(seed for seed, _ in seen) == list(range(30))
    assert next(place for seed, place in seen if seed == 0) < 8


@pytest.mark.parametrize(("bias", "expected"), [(0.1, 0.8400), (0.25, 0.3085), (0.0, 0.9545)])
def test_the_success_rate_of_the_toy_is_its_closed_form(bias, expected):
    assert toy_success_rate(bias) == pytest.approx(expected, abs=1e-4)
    results = run_episodes(Toy(), ToyPolicy(bias=bias).load(), [Job(seed=seed) for seed in range(600)], rows=600)
    assert sum(result.success for result in results) / 600 == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 600) ** 0.5)


def test_jobs_carry_weights_of_their_own_to_a_composition():
    policies = tuple(BiasedPolicy(ToyPolicy(bias=bias)) for bias in (0.0, 5.0))
    policy = GPCPolicy(policies=policies, weights=(0.5, 0.5))
    arms = {"first": (1.0, 0.0), "second": (0.0, 1.0)}
    jobs = [Job(seed=seed, arm=arm, weights=weights) for seed in range(20) for arm, weights in arms.items()]
    results = run_episodes(Toy(), policy, jobs, rows=10)
    assert sum(result.success for result in results if result.arm == "first") >= 15
    assert not any(result.success for result in results if result.arm == "second")
    assert all(result.disagreement is not None for result in results)


def test_actions_outside_the_space_are_clipped_and_counted():
    results = run_episodes(STILL, Steer(gain=6.0, noise=0), JOBS)
    starts = [abs(gymnasium.utils.seeding.np_random(job.seed)[0].uniform(-1, 1)) for job in JOBS]
    assert all(result.clipped >= 2 for result, start in zip(results, starts, strict=True) if 3 * start > 1)
    assert not any(result.crashed for result in results)
    assert sum(result.clipped for result in run_episodes(STILL, Steer(gain=0.5, noise=0), JOBS)) == 0


def test_an_action_that_is_not_finite_costs_its_own_episode_and_names_the_policy():
    well = same(run_episodes(ReachSource({}), Steer(noise=0), JOBS, rows=8))
    ill = same(run_episodes(ReachSource({}), Steer(noise=0, poison=0.7), JOBS, rows=8))
    starts = [gymnasium.utils.seeding.np_random(job.seed)[0].uniform(-1, 1) for job in JOBS]
    crashed = [start > 0.7 for start in starts]
    assert any(crashed)
    assert [result.crashed for result in ill] == crashed
    assert [one for one in ill if not one.crashed] == [one for one, gone in zip(well, crashed, strict=True) if not gone]
    error = next(result.error for result in ill if result.crashed)
    assert "policy steer returned a non-finite action at control step 1" in error


def test_an_environment_that_raises_costs_its_own_episode(caplog):
    well = same(run_episodes(STILL, Steer(), JOBS, rows=8))
    faulty = replace(STILL, faults={3: "raise", 7: "reset raise"})
    ill = same(run_episodes(faulty, Steer(), JOBS, rows=8))
    assert [result.seed for result in ill if result.crashed] == [3, 7]
    assert [one for one in ill if not one.crashed] == [one for one in well if one.seed not in (3, 7)]
    stepped, reset = ill[3], ill[7]
    assert stepped.error.startswith("RuntimeError: physics diverged with seed 3 (tiny_rollouts.py:")
    assert (stepped.length, reset.length, stepped.success, stepped.terminated, stepped.truncated) == (1, 0, False, False, False)
    assert "reach, seed 3: crashed and counts as no success: RuntimeError: physics diverged" in caplog.text


def test_a_crash_undoes_the_success_that_came_before_it():
    well = run_episodes(STILL, Steer(gain=1.0, noise=0), JOBS)
    seed = next(result.seed for result in well if result.success_at == 1)
    ill = run_episodes(replace(STILL, faults={seed: "raise"}), Steer(gain=1.0, noise=0), [Job(seed=seed)])
    assert (ill[0].success, ill[0].success_at, ill[0].success_at_end, ill[0].return_) == (False, None, False, 1.0)


def test_an_environment_without_a_time_limit_is_stopped_at_its_max_steps():
    results = run_episodes(replace(STILL, max_steps=4), Steer(), JOBS[:3])
    assert [(result.length, result.truncated, result.terminated) for result in results] == [(4, True, False)] * 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (replace(STILL, broken=True), r"environment reach could not be made: OSError: no simulator here"),
        (replace(STILL, silent=True), r"environment reach cannot be evaluated: its step\(\) gives no info\['success'\]"),
    ],
)
def test_what_no_episode_can_survive_ends_the_run(source, message):
    with pytest.raises(EnvironmentFailedError, match=message):
        run_episodes(source, Steer(), JOBS)


def test_a_policy_for_other_actions_is_refused():
    policy = Steer(action=ActionSpec(names=("y",), control_rate_hz=20))
    with pytest.raises(ValueError, match=r"the policy acts by \('y',\) at 20 Hz, rotation none; reach takes \('x',\) at 10 Hz"):
        run_episodes(STILL, policy, JOBS)


def test_observations_go_to_where_the_policy_lives():
    network = SimpleNamespace(network=torch.nn.Linear(1, 1, device="meta"))
    assert str(policy_device(network)) == str(policy_device(SimpleNamespace(policies=(network,)))) == "meta"
    assert policy_device(SimpleNamespace(device="cuda:1")) == "cuda:1"
    assert policy_device(Steer()) == "cpu"


def test_jobs_that_repeat_are_refused():
    with pytest.raises(ValueError, match="1 of 31 are repetitions"):
        run_episodes(STILL, Steer(), [*JOBS, JOBS[0]])


def test_a_pool_serves_several_runs_and_no_jobs_give_no_results():
    with EnvPool(ReachSource({}), rows=4) as pool:
        first, second = (same(run_episodes(pool, Steer(), JOBS)) for _ in range(2))
        assert run_episodes(pool, Steer(), []) == []
    assert first == second == same(run_episodes(ReachSource({}), Steer(), JOBS))


@pytest.mark.parametrize("numbers", [{"rows": 0}, {"rows": 1, "workers": -1}, {"rows": 1, "timeout_s": 0}])
def test_a_pool_refuses_numbers_out_of_range(numbers):
    with pytest.raises(ValueError, match=r"must be > 0|rows >= 1"):
        EnvPool(STILL, **numbers)


def test_frames_handed_out_do_not_change_when_the_simulator_reuses_its_arrays():
    slot = Slot(STILL)
    first = slot.answer(Reset(seed=0), lambda: None)
    before = first.frame["position"].copy()
    slot.answer(Act(np.ones(1, np.float32)), lambda: None)
    np.testing.assert_array_equal(first.frame["position"], before)
    assert isinstance(slot._env, Reach)


def test_a_result_survives_its_line():
    result = run_episodes(replace(STILL, faults={0: "reset raise"}), Steer(), JOBS[:1])[0]
    line = result.to_json()
    assert line["return"] == 0.0
    assert line["max_reward"] is None
    assert EpisodeResult.from_json(line | {"seconds": 1.0}) == result


class Diverging(Steer):
    """Steers with a gain that grows with the variation, and without any where there is none."""

    def act(self, observation, generator=None, episodes=None):
        self.gain = 0.5 + (0.0 if episodes is None else torch.tensor([[key.variation] for key in episodes])[:, :, None])
        return super().act(observation, generator)


def test_several_variations_of_a_seed_run_side_by_side_and_come_in_the_order_of_the_jobs():
    jobs = [Job(seed=seed, variation=variation) for seed in (3, 4, 5, 6) for variation in (2, 0, 1)]
    results = same(run_episodes(STILL, Diverging(noise=0), jobs, rows=5))
    alone = [same(run_episodes(STILL, Steer(gain=0.5 + job.variation, noise=0), [Job(seed=job.seed)]))[0] for job in jobs]
    assert results == alone
    with pytest.raises(ValueError, match="arm, seed and variation, but 1 of 13 are repetitions"):
        run_episodes(STILL, Diverging(noise=0), [*jobs, jobs[0]])
