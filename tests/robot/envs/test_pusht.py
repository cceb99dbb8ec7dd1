import sys
import warnings

import numpy as np
import pytest

from flowrl.config import instantiate
from flowrl.errors import MissingExtraError
from robot.envs import PushT, needs
from robot.envs.pusht_expert import _error, _outline, _way

pytest.importorskip("gymnasium")
pytest.importorskip("gym_pusht")

ALL = ("state", "agent", "keypoints", "image")


@pytest.fixture
def env():
    made = PushT(sensors=ALL).make()
    yield made
    made.close()


def play(seed, source):
    env, expert, done = source.make(), source.expert(seed), False
    frame, _ = env.reset(seed=seed)
    actions, info = [], {}
    while not done:
        actions.append(expert.act(env, frame))
        frame, _, terminated, truncated, info = env.step(actions[-1])
        done = terminated or truncated
    return np.array(actions), info


def test_sensors_show_the_librarys_own_readings(env):
    frame, _ = env.reset(seed=3)
    simulator = env.unwrapped.simulation.env
    np.testing.assert_allclose(frame["state"], simulator.get_obs(), rtol=1e-6)
    np.testing.assert_allclose(frame["agent"], frame["state"][:2])
    shapes = {name: (value.shape, value.dtype) for name, value in frame.items()}
    f32, u8 = np.float32, np.uint8
    assert shapes == {"state": ((5,), f32), "agent": ((2,), f32), "keypoints": ((8, 2), f32), "image": ((96, 96, 3), u8)}
    corners = [simulator.block.local_to_world(v) for shape in simulator._block_shapes for v in shape.get_vertices()]
    np.testing.assert_allclose(frame["keypoints"], corners, rtol=1e-5)


def test_the_seed_determines_the_episode_and_seeds_differ(env):
    first = env.reset(seed=7)[0]
    for _ in range(5):
        env.step(np.array([256, 256], np.float32))
    again = env.reset(seed=7)[0]
    assert all(np.array_equal(first[name], again[name]) for name in ALL)
    assert len({env.reset(seed=seed)[0]["state"].tobytes() for seed in range(20)}) == 20


def test_success_is_a_coverage_of_95_percent_and_the_best_coverage_is_kept(env):
    env.reset(seed=0)
    simulator = env.unwrapped.simulation.env
    goal = simulator.get_goal_pose_body(simulator.goal_pose)
    simulator.agent.position = (60.0, 60.0)
    simulator.block.angle = goal.angle
    simulator.block.position = goal.position
    simulator.space.reindex_shapes_for_body(simulator.block)
    stay = np.array([60, 60], np.float32)
    _, reward, terminated, truncated, info = env.step(stay)
    assert (terminated, truncated, info["success"]) == (True, False, True)
    assert info["coverage"] == pytest.approx(1.0, abs=0.01)
    assert reward == pytest.approx(1.0)
    simulator.block.position = (goal.position[0] + 8.0, goal.position[1])
    simulator.space.reindex_shapes_for_body(simulator.block)
    _, reward, terminated, _, info = env.step(stay)
    assert not info["success"]
    assert not terminated
    assert info["coverage"] < 0.9
    assert reward == pytest.approx(info["coverage"] / 0.95)
    assert info["max_coverage"] == pytest.approx(1.0, abs=0.01)


def test_the_time_limit_truncates():
    env = PushT(max_steps=3).make()
    env.reset(seed=0)
    flags = [env.step(np.array([256, 256], np.float32))[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]


def test_the_expert_solves_its_episodes():
    assert [play(seed, PushT())[1]["success"] for seed in (10, 11)] == [True, True]


def test_the_expert_is_determined_by_its_seed():
    source = PushT(max_steps=20)
    np.testing.assert_array_equal(play(5, source)[0], play(5, source)[0])


@pytest.mark.slow
def test_the_expert_solves_40_of_40():
    assert sum(play(seed, PushT())[1]["success"] for seed in range(40)) >= 39


def test_the_planners_error_is_the_mean_distance_of_the_corners(env):
    env.reset(seed=0)
    simulator = env.unwrapped.simulation.env
    simulator.block.angle = float(simulator.goal_pose[2])
    simulator.block.position = tuple(simulator.goal_pose[:2] + np.array([3.0, 4.0]))
    assert _error(simulator) == pytest.approx(5.0)


def test_the_tip_goes_around_the_block(env):
    geometry = pytest.importorskip("shapely.geometry")
    env.reset(seed=0)
    simulator = env.unwrapped.simulation.env
    simulator.block.angle, simulator.block.position = 0.0, (256.0, 256.0)
    outline = _outline(simulator)
    start, end = np.array([256.0, 150.0]), np.array([256.0, 450.0])
    way = _way(outline, start, end)
    assert len(way) > 2
    assert geometry.LineString(way).distance(outline) > 15
    assert len(_way(outline, start, np.array([100.0, 100.0]))) == 2
    assert _way(outline, start, np.array([256.0, 270.0])) is None  # inside the block


def test_gymnasiums_own_checker_accepts_it():
    from gymnasium.utils.env_checker import check_env

    env = PushT(sensors=ALL).make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)
    env.reset(seed=0)
    assert env.render().shape == (256, 256, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sensors": ["keypoint"]}, "no sensor 'keypoint'; did you mean 'keypoints'"),
        ({"sensors": []}, "must not be empty"),
        ({"candidates": 0}, "must be >= 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        instantiate({"target": "robot.envs.PushT", **fields})


def test_a_missing_simulator_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flowrl-torch\[pusht\]'"):
        PushT().make()


def test_problems_name_a_version_that_does_not_work(monkeypatch):
    assert PushT().problems() == []
    monkeypatch.setattr(needs, "version", lambda name: {"pymunk": "7.0.1", "gymnasium": "1.4.0"}.get(name, "0.1.8"))
    assert PushT().problems() == ["pymunk 7.0.1 does not work here, it takes >=6.6,<7; install it with: pip install 'pymunk>=6.6,<7'"]
