"""Environments in processes of their own, some of which die or hang."""

from dataclasses import replace

import pytest
from tiny_rollouts import ReachSource, Steer

from flowrl.errors import ConfigError
from robot.evaluation import EnvironmentFailedError, EnvPool, Job, run_episodes
from robot.evaluation.slot import Act, Crash, Lost, Reset, Step

JOBS = [Job(seed=seed) for seed in range(24)]
STILL = ReachSource({}, stop_on_success=False)


def same(results):
    return [replace(result, latency_s={}) for result in results]


def test_two_workers_give_what_none_give():
    expected = same(run_episodes(ReachSource({}), Steer(), JOBS, rows=6))
    assert same(run_episodes(ReachSource({}), Steer(), JOBS, rows=6, workers=2)) == expected


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_costs_its_own_episode_and_its_neighbours_are_repeated():
    faults = {2: "die", 5: "hang", 9: "reset die", 12: "raise", 13: "die"}
    expected = same(run_episodes(STILL, Steer(), JOBS, rows=6))
    with EnvPool(replace(STILL, faults=faults), rows=6, workers=2, timeout_s=1.5) as pool:
        results = same(run_episodes(pool, Steer(), JOBS))
    assert [result.seed for result in results if result.crashed] == sorted(faults)
    assert [result for result in results if not result.crashed] == [result for result in expected if result.seed not in faults]
    errors = {result.seed: result.error for result in results if result.crashed}
    assert errors[2] == errors[9] == errors[13] == "its process ended with status 7"
    assert errors[5] == "no answer within 1.5 s; the environment hung and its process was ended"
    assert errors[12].startswith("RuntimeError: physics diverged")


@pytest.mark.slow
def test_an_episode_that_ended_in_the_very_exchange_in_which_its_neighbour_died_is_kept():
    source = replace(STILL, faults={1: "die"}, stop_on_success=True)
    with EnvPool(source, rows=3, workers=1) as pool:
        begun = pool.exchange({row: Reset(seed=row) for row in range(3)})
        assert all(isinstance(answer, Step) for answer in begun.values())
        still = pool.exchange({1: Act(0 * begun[1].frame["position"])})
        assert isinstance(still[1], Step)
        home = Act(-begun[0].frame["position"])  # solves the task at once, so the episode ends
        answers = pool.exchange({0: home, 1: Act(0 * begun[1].frame["position"])})
        assert isinstance(answers[0], Step)
        assert answers[0].terminated
        assert isinstance(answers[1], Crash)
        assert isinstance(answers[2], Lost)  # it was not even asked
        assert isinstance(pool.exchange({2: Reset(seed=2)})[2], Step)


@pytest.mark.slow
def test_an_environment_that_no_worker_can_make_ends_the_run():
    with pytest.raises(EnvironmentFailedError, match=r"environment reach could not be made: OSError: no simulator here.*__main__"):
        run_episodes(replace(STILL, broken=True), Steer(), JOBS, workers=1)


def test_a_source_that_cannot_be_sent_to_a_process_says_so():
    class Local(ReachSource):
        pass

    with pytest.raises(ConfigError, match=r"Local cannot be sent to a worker process .* or use workers=0"):
        run_episodes(Local({}), Steer(), JOBS, workers=1)


def test_processes_end_with_the_pool():
    pool = EnvPool(STILL, rows=2, workers=1)
    pool.exchange({0: Reset(seed=0), 1: Reset(seed=1)})
    process = pool._workers[0]._process
    pid_alive = process.is_alive()
    pool.close()
    assert pid_alive
    assert pool._workers[0]._process is None
