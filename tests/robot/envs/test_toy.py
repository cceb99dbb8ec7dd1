import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from flowrl.config import instantiate
from robot.composition import Composer, Sampling
from robot.envs import Toy, toy_success_rate
from robot.envs.toy_policy import ToyPolicy
from robot.types import Observation

pytest.importorskip("gymnasium")

PAIRS = {  # golden test G14: biases and the success rates at w = 0, .1 … 1
    (0.25, -0.25): [0.3085, 0.5000, 0.6912, 0.8400, 0.9270, 0.9545, 0.9270, 0.8400, 0.6912, 0.5000, 0.3085],
    (0.1, -0.3): [0.1587, 0.2743, 0.4207, 0.5792, 0.7254, 0.8400, 0.9146, 0.9502, 0.9502, 0.9146, 0.8400],
}


def seen(rows, target=0.5):
    return Observation({"target": torch.full((rows, 1, 1), target)})


@pytest.mark.parametrize("pair", PAIRS)
def test_success_rates_are_those_of_the_specification(pair):
    rates = [toy_success_rate(w / 10 * pair[0] + (1 - w / 10) * pair[1]) for w in range(11)]
    np.testing.assert_allclose(rates, PAIRS[pair], atol=6e-5)


def test_an_episode_is_one_step_and_succeeds_within_the_tolerance():
    env = Toy().make()
    frame, info = env.reset(seed=3)
    assert not info["success"]
    outcomes = []
    for miss in (0.0, 0.19, -0.19, 0.21, -0.21):
        env.reset(seed=3)
        _, reward, terminated, truncated, info = env.step(frame["target"] + np.float32(miss))
        outcomes.append((info["success"], terminated, truncated))
        assert reward == pytest.approx(-abs(miss), abs=1e-6)
    assert outcomes == [(True, True, False)] * 3 + [(False, True, False)] * 2


def test_the_target_is_uniform_and_set_by_the_seed():
    env = Toy().make()
    targets = np.array([env.reset(seed=seed)[0]["target"][0] for seed in range(2000)])
    np.testing.assert_array_equal(targets[7], Toy().make().reset(seed=7)[0]["target"][0])
    assert abs(targets.mean()) < 0.04  # 3 sigma of 2000 uniform numbers
    assert targets.var() == pytest.approx(1 / 3, rel=0.06)


def test_the_expert_hits():
    env = Toy().make()
    frame, _ = env.reset(seed=0)
    assert env.step(Toy().expert(0).act(env, frame))[4]["success"]


def test_gymnasiums_own_checker_accepts_it_and_it_can_be_drawn():
    from gymnasium.utils.env_checker import check_env

    env = Toy().make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env)
    assert env.render().shape == (64, 64, 3)


@pytest.mark.parametrize("family", ["flow", "diffusion"])
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (3.0, 0.25)])
def test_a_policy_acts_by_its_law_whatever_its_normaliser(family, offset, scale):
    policy = ToyPolicy(bias=0.25, family=family, offset=offset, scale=scale).load()
    chunk = policy.act(seen(20000), torch.Generator().manual_seed(0))
    assert chunk.values.shape == (20000, 1, 1)
    assert float(chunk.values.mean()) == pytest.approx(0.75, abs=0.004)
    assert float(chunk.values.std()) == pytest.approx(0.1, abs=0.004)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_diffusion_and_a_flow_compose_to_the_success_rate_of_the_closed_form(pair):
    first = ToyPolicy(bias=pair[0], family="diffusion", scale=0.5).load()
    second = ToyPolicy(bias=pair[1], family="flow", offset=0.3).load()
    for tenth in (0, 3, 5, 8, 10):
        members = (first.member(tenth / 10), second.member(1 - tenth / 10))
        drawn = Composer(members).sample((10000, 1, 1), steps=50, generator=torch.Generator().manual_seed(1), condition=seen(10000))
        rate = float(((drawn - 0.5).abs() < 0.2).float().mean())
        assert rate == pytest.approx(PAIRS[pair][tenth], abs=0.02)


def test_a_policy_sees_each_rows_target():
    values = ToyPolicy(bias=0.0, std=0.001).load().act(Observation({"target": torch.tensor([[[-0.5]], [[0.5]]])})).values
    np.testing.assert_allclose(values.ravel(), [-0.5, 0.5], atol=0.02)


def test_a_policy_builds_from_a_config():
    sampling = {"target": "robot.composition.Sampling", "steps": 20, "clip": None}
    config = {"target": "robot.envs.toy_policy.ToyPolicy", "bias": 0.1, "family": "diffusion", "sampling": sampling}
    policy = instantiate(config).load()
    assert policy.sampling == Sampling(steps=20, clip=None)
    assert (policy.name, policy.action.names, policy.sensors) == ("diffusion +0.1", ("position",), ("target",))


@pytest.mark.parametrize("fields", [{"std": 0.0}, {"scale": -1.0}, {"horizon": 0}, {"family": "normalising flow"}])
def test_a_policy_that_has_no_law_is_refused(fields):
    with pytest.raises(ValueError, match=r"must be"):
        ToyPolicy(bias=0.0, **fields)


def test_without_any_of_the_extras_everything_imports_and_making_says_what_is_missing():
    program = """
import sys
for name in "gymnasium h5py imageio imageio_ffmpeg pyarrow metaworld mujoco gym_pusht pymunk robosuite".split():
    sys.modules[name] = None
import robot.demonstrations
from robot.envs import MetaWorld, PushT, Toy
from flowrl.errors import MissingExtraError
for source in (Toy(), PushT(), MetaWorld(task="push"), robot.demonstrations.Recording(env=Toy(), out="never", seeds="0:1")):
    try:
        source.run() if hasattr(source, "run") else source.make()
    except MissingExtraError as error:
        print(str(error).rpartition(": ")[2])
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split("\n")
    assert said[:3] == [f"pip install 'flowrl-torch[{extra}]'" for extra in ("robot", "pusht", "metaworld")]
    assert said[3].startswith("pip install")


def test_a_tolerance_must_be_positive():
    with pytest.raises(ValueError, match="tolerance must be > 0"):
        Toy(tolerance=0.0)
