import warnings

import numpy as np
import pytest

from flowrl.config import instantiate
from flowrl.errors import MissingExtraError
from robot.envs import METAWORLD_TASKS, MetaWorld, NoisySensors, Toy, needs

pytest.importorskip("gymnasium")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    library = pytest.importorskip("metaworld.env_dict")


def play(source, seed, env=None):
    """First frame, actions and whether the expert solved it."""
    env = env or source.make()
    expert = source.expert(seed)
    frame, _ = env.reset(seed=seed)
    frames, done, info = [frame], False, {}
    while not done:
        frame, _, terminated, truncated, info = env.step(expert.act(env, frame))
        frames.append(frame)
        done = terminated or truncated
    return frames, info["success"]


def test_every_task_of_the_library_is_known():
    assert {f"{task}-v3" for task in METAWORLD_TASKS} == set(library.ALL_V3_ENVIRONMENTS)
    assert len(METAWORLD_TASKS) == 50


@pytest.mark.parametrize("task", ["reach", "push", "button-press", "window-open"])
def test_the_scripted_expert_solves_a_task_and_ends_it(task):
    frames, success = play(MetaWorld(task=task), seed=1)
    assert success
    assert 20 < len(frames) < 120


@pytest.mark.slow
@pytest.mark.parametrize("task", METAWORLD_TASKS)
def test_every_task_is_the_same_for_the_same_seed_and_different_for_others(task):
    source = MetaWorld(task=task, max_steps=150, sensors=("state", "goal"))
    env = source.make()
    firsts = [env.reset(seed=seed)[0]["state"] for seed in range(4)]
    assert len({first.tobytes() for first in firsts}) == 4
    used, _ = play(source, 2, env)
    assert all(np.abs(frame["goal"]).max() > 0.05 for frame in used)  # the goal is visible, also after steps
    fresh, _ = play(source, 2)
    assert len(used) == len(fresh)
    assert all(np.array_equal(one["state"], other["state"]) for one, other in zip(used, fresh, strict=True))


def test_sensors_are_the_named_parts_of_the_librarys_observation():
    env = MetaWorld(task="push", sensors=("proprioception", "object", "goal", "state")).make()
    frame, _ = env.reset(seed=5)
    simulator = env.unwrapped.simulation.env
    np.testing.assert_allclose(frame["proprioception"][:3], simulator.get_endeff_pos(), atol=1e-6)
    np.testing.assert_allclose(frame["object"][:3], simulator._get_pos_objects(), atol=1e-6)
    np.testing.assert_allclose(frame["goal"], simulator._target_pos, atol=1e-6)
    np.testing.assert_array_equal(frame["state"][:18], np.concatenate([frame["proprioception"], frame["object"]]))
    assert {name: (value.shape, value.dtype) for name, value in frame.items()} == {
        "proprioception": ((4,), np.float32),
        "object": ((14,), np.float32),
        "goal": ((3,), np.float32),
        "state": ((39,), np.float32),
    }


def test_the_goal_stays_visible_after_a_step():
    env = MetaWorld(task="push").make()
    before, _ = env.reset(seed=5)
    after = env.step(np.zeros(4, np.float32))[0]
    np.testing.assert_allclose(after["goal"], before["goal"], atol=1e-6)


def test_the_control_rate_is_the_simulators():
    env = MetaWorld(task="reach").make()
    assert MetaWorld(task="reach").action.control_rate_hz == pytest.approx(1 / env.unwrapped.simulation.env.dt)


def test_an_action_moves_the_hand_by_a_centimetre_at_most():
    env = MetaWorld(task="reach").make()
    env.reset(seed=0)
    before = env.unwrapped.simulation.env.data.mocap_pos.copy()
    env.step(np.array([9, 0, 0, 0], np.float32))
    np.testing.assert_allclose(env.unwrapped.simulation.env.data.mocap_pos - before, [[0.01, 0, 0]], atol=1e-9)


def test_the_time_limit_truncates_and_success_need_not_end_an_episode():
    env = MetaWorld(task="reach", max_steps=60, stop_on_success=False).make()
    expert = MetaWorld(task="reach").expert(0)
    frame, _ = env.reset(seed=1)
    flags = []
    for _ in range(60):
        frame, _, terminated, truncated, info = env.step(expert.act(env, frame))
        flags.append((terminated, truncated, info["success"]))
    assert not any(terminated for terminated, _, _ in flags)
    assert [truncated for _, truncated, _ in flags] == [False] * 59 + [True]
    assert flags[-1][2]


@pytest.mark.parametrize("action", [np.zeros(3), np.full(4, np.nan)])
def test_an_action_of_another_shape_or_not_finite_is_refused(action):
    env = MetaWorld(task="reach").make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\(4,\) finite numbers"):
        env.step(action)


def test_gymnasiums_own_checker_accepts_it():
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice such as to normalise observations
        check_env(MetaWorld(task="reach").make(), skip_render_check=True)


def drawn(seed, **fields):
    env = MetaWorld(task="push", sensors=("image", "object"), image_size=96, video_size=64, **fields).make()
    try:
        return env, env.reset(seed=seed)[0]
    except MissingExtraError as error:
        pytest.skip(str(error))


def test_cameras_show_the_scene_the_right_way_up():
    env, frame = drawn(0)
    picture = frame["image"].astype(int)
    assert (picture.shape, frame["image"].dtype) == ((96, 96, 3), np.uint8)
    red = (picture[..., 0] > 90) & (picture[..., 1:] < 60).all(-1)  # the arm, above and left of the middle seen from corner2
    assert red.sum() > 50
    assert np.argwhere(red).mean(0)[0] < 55
    assert env.render().shape == (64, 64, 3)
    env.close()


def test_the_object_can_be_seen():
    env, frame = drawn(0, camera="topview")
    simulator = env.unwrapped.simulation
    qpos = simulator.env.data.qpos.copy()
    qpos[9:11] += 0.1
    simulator.env.set_state(qpos, simulator.env.data.qvel)
    assert np.abs(simulator._frame()["image"].astype(int) - frame["image"]).max() > 50
    env.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "pusch"}, "no task 'pusch'; did you mean 'push'"),
        ({"task": "push", "sensors": ["gaol"]}, "no sensor 'gaol'; did you mean 'goal'"),
        ({"task": "push", "sensors": []}, "must not be empty"),
        ({"task": "push", "max_steps": 0}, "must be >= 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        instantiate({"target": "robot.envs.MetaWorld", **fields})


def test_the_librarys_version_suffix_is_optional():
    assert MetaWorld(task="push-v3") == MetaWorld(task="push")


def test_a_missing_simulator_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "metaworld.env_dict", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flowrl-torch\[metaworld\]'"):
        MetaWorld(task="push").make()


def test_problems_name_a_missing_library_and_a_wrong_version(monkeypatch):
    assert MetaWorld(task="push").problems() == []
    monkeypatch.setattr("robot.envs.metaworld.gl_problems", lambda: ["nothing draws"])
    assert MetaWorld(task="push", sensors=("image",)).problems() == ["nothing draws"]
    monkeypatch.setattr(needs, "version", lambda name: {"mujoco": "4.0.1", "metaworld": "2.0"}.get(name, "1.4.0rc1"))
    assert MetaWorld(task="push").problems() == [
        "metaworld 2.0 does not work here, it takes >=3.0; install it with: pip install 'metaworld>=3.0'",
        "mujoco 4.0.1 does not work here, it takes >=3.0,<3.10; install it with: pip install 'mujoco>=3.0,<3.10'",
    ]
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    assert len(MetaWorld(task="push").problems()) == 3


class TestNoisySensors:
    BASE = MetaWorld(task="reach")

    def frames(self, episode, /, **fields):
        env = NoisySensors(env=self.BASE, **fields).make()
        frames = [env.reset(seed=episode)[0]]
        frames += [env.step(np.zeros(4, np.float32))[0] for _ in range(200)]
        env.close()
        return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}

    def test_noise_has_the_given_bias_offset_and_spread(self):
        clear = self.frames(3)["goal"]
        noisy = self.frames(3, std={"goal": 0.02}, bias={"goal": (0.1, 0.0, -0.1)})["goal"]
        error = noisy - clear
        np.testing.assert_allclose(error.mean(0), [0.1, 0, -0.1], atol=0.005)
        np.testing.assert_allclose(error.std(0), 0.02, rtol=0.15)
        offset = self.frames(3, episode_std={"goal": 0.05})["goal"] - clear
        assert np.ptp(offset, axis=0).max() < 1e-6
        assert 0.005 < np.abs(offset[0]).max() < 0.2

    def test_copies_err_on_their_own_and_leave_the_original_alone(self):
        seen = self.frames(3, copies={"left": "goal", "right": "goal"}, std={"left": 0.02, "right": 0.02})
        np.testing.assert_array_equal(seen["goal"], self.frames(3)["goal"])
        left, right = seen["left"] - seen["goal"], seen["right"] - seen["goal"]
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.15
        alone = self.frames(3, copies={"left": "goal"}, std={"left": 0.02})["left"]
        np.testing.assert_array_equal(alone, seen["left"])

    def test_errors_depend_on_the_episodes_seed_and_the_wrappers(self):
        def error(seed, own):
            return self.frames(seed, std={"goal": 0.02}, seed=own)["goal"] - self.frames(seed)["goal"]

        np.testing.assert_array_equal(error(3, 0), error(3, 0))
        assert not np.array_equal(error(3, 0), error(3, 1))
        assert not np.array_equal(error(3, 0), error(4, 0))

    def test_an_expert_that_looks_at_frames_sees_through_any_number_of_noisy_sensors(self):
        twice = NoisySensors(env=NoisySensors(env=Toy(), std={"target": 5.0}), std={"target": 5.0}, seed=1)
        assert all(play(twice, seed)[1] for seed in range(5))

    def test_the_expert_is_not_disturbed(self):
        clear, solved = play(self.BASE, 1)
        noisy, also = play(NoisySensors(env=self.BASE, std={"goal": 0.5, "proprioception": 0.5}), 1)
        assert solved
        assert also
        assert len(clear) == len(noisy)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"std": {"gaol": 0.1}}, "no sensor 'gaol'"),
            ({"copies": {"a": "gaol"}}, "no sensor 'gaol' to copy"),
            ({"copies": {"goal": "object"}}, "cannot be called 'goal'"),
            ({"std": {"goal": (0.1, 0.2)}}, "one for each of"),
            ({"std": {"goal": -1.0}}, "finite and >= 0"),
        ],
    )
    def test_errors_that_cannot_be_added_are_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            NoisySensors(env=self.BASE, **fields).make()

    def test_it_builds_from_a_config(self):
        config = {"target": "robot.envs.NoisySensors", "env": {"target": "robot.envs.MetaWorld", "task": "push"}, "std": {"goal": 0.01}}
        assert instantiate(config) == NoisySensors(env=MetaWorld(task="push"), std={"goal": 0.01})
