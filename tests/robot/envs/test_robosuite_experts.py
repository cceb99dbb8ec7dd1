import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot.envs import Robosuite, check
from robot.envs.robosuite_experts import PEG_BEARING, ScriptedExpert, Style, peg_approach
from robot.envs.robosuite_hand import FORWARD, wrapped

pytestmark = pytest.mark.skipif(bool(check.extra_problems("robosuite")), reason="; ".join(check.extra_problems("robosuite")))


def play(env, source, seed, disturb=lambda step: None, style=None):
    """Actions of the expert, and whether it solved the episode."""
    frame, _ = env.reset(seed=seed)
    expert = source.expert(seed if style is None else style)
    actions, done, info = [], False, {}
    while not done:
        actions.append(expert.act(env, frame))
        frame, _, terminated, truncated, info = env.step(actions[-1])
        disturb(len(actions))
        done = terminated or truncated
    return np.array(actions), info["success"]


@pytest.fixture(scope="module")
def lift():
    source = Robosuite(task="Lift", max_steps=150)
    env = source.make()
    yield env, source
    env.close()


def test_an_expert_without_a_plan_cannot_be_made():
    with pytest.raises(TypeError, match=r"abstract.*attempt"):
        ScriptedExpert(0)


def test_the_cube_is_lifted_with_legal_actions(lift):
    for seed in (0, 1):
        actions, success = play(*lift, seed)
        assert success
        assert 25 < len(actions) < 80
        assert actions.dtype == np.float32
        assert np.abs(actions).max() <= 1


def test_one_seed_one_demonstration_and_another_style_another(lift):
    first, _ = play(*lift, 2)
    again, _ = play(*lift, 2)
    other, success = play(*lift, 2, style=77)
    assert np.array_equal(first, again)
    assert success
    assert len(other) != len(first) or np.abs(other - first).max() > 0.05


def test_a_cube_that_is_taken_away_is_grasped_again(lift):
    env, _ = lift

    def take(step):
        if step == 20:
            cube = env.unwrapped.simulation.robosuite.sim.data._data.joint("cube_joint0")
            cube.qpos[:2] = (0.05, -0.08)
            cube.qvel[:] = 0

    actions, success = play(*lift, 3, take)
    assert success
    assert len(actions) > 40


@pytest.mark.slow
@pytest.mark.parametrize("task", ["Can", "Square"])
def test_experts_solve_their_tasks(task):
    source = Robosuite(task=task)
    env = source.make()
    for seed in (0, 1, 2, 3):
        actions, success = play(env, source, seed)
        assert success
        assert len(actions) < 250
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "least"), [("Lift", 10), ("Can", 9), ("Square", 9)])
def test_experts_survive_shaky_hands(task, least):
    source = Robosuite(task=task)
    env = source.make()
    solved = 0
    for seed in range(10):
        frame, _ = env.reset(seed=seed)
        expert, draw, done, info = source.expert(seed), np.random.default_rng(seed), False, {}
        while not done:
            shaken = expert.act(env, frame) + np.array([*(0.15 * draw.standard_normal(6)), 0], np.float32)
            frame, _, terminated, truncated, info = env.step(shaken)
            done = terminated or truncated
        solved += info["success"]
    assert solved >= least
    env.close()


@pytest.mark.parametrize("bearing", np.linspace(-0.6, 0.6, 7))
def test_there_is_a_way_onto_the_peg_for_every_nut_and_the_wrist_can_go_it(bearing):
    for yaw in np.linspace(-math.pi, math.pi, 361):
        side, goal = peg_approach(yaw, bearing)
        start = wrapped(yaw + side - FORWARD - bearing)
        final = bearing + start + wrapped(goal - yaw)
        assert -1.9 < start < 2.6
        assert -1.9 < final - PEG_BEARING < 2.6
        assert abs(abs(side) - math.pi / 2) < 1e-12
        assert abs(goal) > 1  # never away from the robot


@given(angle=st.floats(-50, 50))
def test_a_wrapped_angle_is_the_same_direction_within_half_a_turn(angle):
    result = wrapped(angle)
    assert -math.pi <= result <= math.pi
    assert math.cos(result) == pytest.approx(math.cos(angle), abs=1e-9)
    assert math.sin(result) == pytest.approx(math.sin(angle), abs=1e-9)


def test_a_seed_draws_one_style():
    assert Style.drawn(3) == Style.drawn(3)
    assert len({Style.drawn(seed) for seed in range(50)}) == 50
    assert all(0.5 < Style.drawn(seed).speed <= 1 for seed in range(50))
