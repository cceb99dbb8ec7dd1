import functools
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

from flowrl.config import instantiate
from flowrl.errors import MissingExtraError
from robot.envs import Robosuite, check, needs
from robot.envs.robosuite import CAMERAS, OSC_POSE, TASKS

pytestmark = pytest.mark.skipif(bool(check.extra_problems("robosuite")), reason="; ".join(check.extra_problems("robosuite")))
BODIES = {"Lift": "cube_main", "Can": "Can_main", "Square": "SquareNut_main"}
STILL = np.zeros(7, np.float32)


@functools.cache
def made(task, **fields):
    """One environment serves all tests of this file: a reset has to be enough."""
    return Robosuite(task=task, **fields).make()


def needs_gl():
    if problems := check.gl_problems():
        pytest.skip(problems[0])


def body(env, name):
    return env.unwrapped.simulation.robosuite.sim.data._data.body(name)


def wander(env, seed, steps=12):
    """The frames of an episode of random actions."""
    frames = [env.reset(seed=seed)[0]]
    draw = np.random.default_rng(seed)
    frames += [env.step(draw.uniform(-1, 1, 7).astype(np.float32))[0] for _ in range(steps)]
    return frames


def same(one, other):
    return all(np.array_equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_episode_whatever_went_before(task):
    env = made(task)
    first = wander(env, 3)
    other = wander(env, 4)
    assert same(first, wander(env, 3))
    assert not same(first, other)


def test_a_seed_gives_the_same_episode_in_a_fresh_environment():
    assert same(wander(made("Lift"), 5), wander(Robosuite(task="Lift").make(), 5))


@pytest.mark.parametrize("task", TASKS)
def test_objects_lie_elsewhere_for_every_seed(task):
    env = made(task)
    places = set()
    for seed in range(5):
        env.reset(seed=seed)
        places.add(body(env, BODIES[task]).xpos.tobytes())
    assert len(places) == 5


@pytest.mark.parametrize("task", TASKS)
def test_frames_are_of_the_declared_space_and_vectors_are_float32(task):
    env = made(task)
    for frame in wander(env, 1, 2):
        assert env.observation_space.contains(frame)
        assert {name: (value.shape, value.dtype) for name, value in frame.items()} == {
            "robot0_eef_pos": ((3,), np.float32),
            "robot0_eef_quat": ((4,), np.float32),
            "robot0_gripper_qpos": ((2,), np.float32),
            "object": ((10 if task == "Lift" else 14,), np.float32),
        }


@pytest.mark.parametrize("task", TASKS)
def test_a_frame_shows_the_simulation_as_it_is_now(task):
    env = made(task)
    for look in (lambda: wander(env, 2, 8)[-1], lambda: env.reset(seed=2)[0]):
        frame = look()
        env.unwrapped.simulation.robosuite.sim.forward()  # positions that belong to the joints' values
        sim = env.unwrapped.simulation.robosuite.sim.data._data
        hand = sim.site("gripper0_right_grip_site").xpos
        thing = body(env, BODIES[task])
        np.testing.assert_allclose(frame["robot0_eef_pos"], hand, atol=1e-6)
        if task == "Lift":
            expected = [*thing.xpos, *np.roll(thing.xquat, -1), *(thing.xpos - hand)]
            np.testing.assert_allclose(frame["object"], expected, atol=1e-6)
        else:
            np.testing.assert_allclose(frame["object"][7:], [*thing.xpos, *np.roll(thing.xquat, -1)], atol=1e-6)
            turned = rotation(frame["robot0_eef_quat"]).T @ (thing.xpos - hand)
            np.testing.assert_allclose(frame["object"][:3], turned, atol=1e-5)


def rotation(quaternion):
    """Of a unit quaternion xyzw, by the textbook."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


@pytest.mark.parametrize(("axis", "sign"), [(0, 1), (1, -1), (2, 1)])
def test_an_action_of_one_moves_the_hand_about_as_a_damped_spring_five_centimetres_ahead(axis, sign):
    env = made("Lift")
    start = env.reset(seed=0)[0]["robot0_eef_pos"]
    action = STILL.copy()
    action[axis] = sign
    for _ in range(8):
        frame = env.step(action)[0]
    place = speed = 0.0  # m x'' = 150 (goal - x) - 2 sqrt(150) x' for a unit mass, integrated at the simulation's 2 ms
    for _ in range(8):
        goal = place + 0.05
        for _ in range(25):
            speed += 0.002 * (150 * (goal - place) - 2 * 150**0.5 * speed)
            place += 0.002 * speed
    moved = frame["robot0_eef_pos"] - start
    assert moved[axis] * sign == pytest.approx(place, rel=0.2)  # the arm has joint damping too
    assert np.abs(np.delete(moved, axis)).max() < 0.15 * place


def test_the_last_dimension_closes_and_opens_the_fingers():
    env = made("Lift")
    env.reset(seed=0)
    widths = []
    for command in (1.0, -1.0):
        for _ in range(15):
            frame = env.step(np.array([0, 0, 0, 0, 0, 0, command], np.float32))[0]
        widths.append(frame["robot0_gripper_qpos"][0] - frame["robot0_gripper_qpos"][1])
    assert widths[0] < 0.005
    assert widths[1] > 0.07


def raise_cube(env):
    env.unwrapped.simulation.robosuite.sim.data._data.joint("cube_joint0").qpos[2] = 1.2


@pytest.mark.parametrize("stop", [True, False])
def test_success_is_told_at_every_step_and_ends_the_episode_only_if_wanted(stop):
    env = made("Lift", stop_on_success=stop, max_steps=4)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(STILL)
    assert (reward, terminated, truncated, info["success"]) == (0, False, False, False)
    raise_cube(env)
    _, reward, terminated, truncated, info = env.step(STILL)
    assert (reward, terminated, truncated, info["success"]) == (1, stop, False, True)


def test_the_time_limit_truncates_and_never_terminates():
    env = made("Lift", stop_on_success=True, max_steps=4)
    env.reset(seed=0)
    assert [env.step(STILL)[2:4] for _ in range(4)] == [(False, False)] * 3 + [(False, True)]
    env.reset(seed=0)
    for _ in range(3):
        env.step(STILL)
    raise_cube(env)
    assert env.step(STILL)[2:4] == (True, False)


def test_a_restored_state_shows_the_frame_of_that_moment():
    env = made("Can")
    simulation = env.unwrapped.simulation
    frame = wander(env, 6, 10)[-1]
    state = simulation.state()
    assert state.shape == (1 + simulation.robosuite.sim.model.nq + simulation.robosuite.sim.model.nv,)
    wander(env, 7, 5)
    again = simulation.restore(state)
    for name, value in frame.items():
        np.testing.assert_allclose(again[name], value, atol=1e-6)
    with pytest.raises(ValueError, match=r"a state of Can has shape .* got \(3,\)"):
        simulation.restore(np.zeros(3))
    assert simulation.model_xml().startswith("<mujoco")


def test_actions_carry_names_rate_and_the_kind_of_rotation():
    spec = Robosuite(task="Can").action
    assert (spec.names, spec.control_rate_hz, spec.rotation, spec.dof) == (OSC_POSE, 20, "delta", 7)
    assert made("Lift").action_space.shape == (7,)


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan)])
def test_an_action_that_is_none_is_refused(action):
    env = made("Lift")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="finite"):
        env.step(action)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "Stack"}, "task must be one of Lift, Can, Square, got 'Stack'"),
        ({"cameras": ("topview",)}, "Lift has no camera topview; it has agentview"),
        ({"cameras": ("agentview", "agentview")}, "cameras must differ"),
        ({"render_camera": "topview"}, "no camera topview"),
        ({"control_rate_hz": 30}, "control_rate_hz must divide 500, got 30"),
        ({"control_rate_hz": 0}, "control_rate_hz must divide 500, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"camera_size": 0}, "camera_size must be at least 1"),
    ],
)
def test_a_field_out_of_range_is_refused_before_the_simulator_is_imported(fields, message):
    with pytest.raises(ValueError, match=message):
        Robosuite(**fields)


def test_a_config_describes_it():
    made_from_yaml = instantiate({"target": "robot.envs.Robosuite", "task": "Square", "cameras": ["agentview"], "max_steps": 300})
    assert made_from_yaml == Robosuite(task="Square", cameras=("agentview",), max_steps=300)
    assert made_from_yaml.name == "Square"


def test_pictures_show_the_scene_and_follow_it():
    needs_gl()
    source = Robosuite(task="Lift", cameras=("agentview", "robot0_eye_in_hand"), camera_size=48, render_size=64)
    env = source.make()
    frame, _ = env.reset(seed=0)
    assert env.observation_space.contains(frame)
    seen = frame["agentview_image"].astype(int)
    assert seen.shape == (48, 48, 3)
    red = np.argwhere((seen[..., 0] > 90) & (seen[..., 1:].max(-1) < 80))
    assert 5 < len(red) < 200  # the cube
    assert abs(red.mean(0) - 24).max() < 6  # in the middle
    assert seen[-6:].mean() > seen[:6].mean() + 20  # the table is bright and below, the wall above
    assert env.render().shape == (64, 64, 3)
    assert env.render().dtype == np.uint8
    other, _ = env.reset(seed=1)
    again, _ = env.reset(seed=0)
    assert not np.array_equal(other["agentview_image"], frame["agentview_image"])
    assert np.array_equal(again["robot0_eye_in_hand_image"], frame["robot0_eye_in_hand_image"])
    env.close()
    env.close()


@pytest.mark.slow
def test_environments_of_one_task_draw_with_one_context_and_each_itself():
    needs_gl()
    source = Robosuite(task="Can", cameras=("agentview",), camera_size=48)
    one, other = source.make(), source.make()
    frames = [env.reset(seed=seed)[0]["agentview_image"] for env, seed in ((one, 0), (other, 1), (other, 0))]
    assert one.unwrapped.simulation._drawing is other.unwrapped.simulation._drawing
    assert np.array_equal(frames[0], frames[2])
    assert not np.array_equal(frames[0], frames[1])
    drawing = weakref.ref(one.unwrapped.simulation._drawing)
    one.close()
    assert np.array_equal(other.reset(seed=1)[0]["agentview_image"], frames[1])
    other.close()
    assert drawing() is None


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_camera_that_is_offered_exists(task):
    needs_gl()
    env = Robosuite(task=task, cameras=CAMERAS, camera_size=16).make()
    frame, _ = env.reset(seed=0)
    assert all(frame[f"{camera}_image"].std() > 1 for camera in CAMERAS)
    env.close()


def test_what_does_not_fit_is_named_with_the_remedy_before_anything_is_imported(monkeypatch):
    monkeypatch.setattr(needs, "version", lambda name: {"mujoco": "4.0.0"}.get(name, "1.5.2"))
    message = r"mujoco 4.0.0 does not work here, it takes >=3.3,<3.10; install it with: pip install 'mujoco>=3.3,<3.10'"
    assert Robosuite().problems() == [message]
    with pytest.raises(MissingExtraError, match=r"Lift: mujoco 4\.0\.0 does not work here"):
        Robosuite().make()


def test_only_cameras_make_a_missing_back_end_a_problem(monkeypatch):
    monkeypatch.setattr("robot.envs.robosuite.gl_problems", lambda: ["nothing draws"])
    assert Robosuite().problems() == []
    assert Robosuite(cameras=("agentview",)).problems() == ["nothing draws"]


def test_the_environment_variable_stays_as_it_was(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    Robosuite().make().close()
    assert "MUJOCO_GL" not in os.environ


@pytest.mark.slow
def test_nothing_is_printed_and_nothing_is_warned_of():
    code = "from robot.envs import Robosuite; e = Robosuite().make(); e.reset(seed=0); e.step(e.action_space.sample()); e.close()"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_the_settings_that_go_into_a_robomimic_file_build_the_same_task():
    from robot.envs.quiet import quiet

    source = Robosuite(task="Can")
    described = source.robomimic()
    assert (described["env_name"], described["type"]) == ("PickPlaceCan", 1)
    with quiet():
        import robosuite

        theirs = robosuite.make(described["env_name"], **described["env_kwargs"])
    assert theirs.action_dim == source.action.dof
    assert theirs.control_freq == 20
    theirs.close()
