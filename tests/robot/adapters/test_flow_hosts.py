"""DPPO, ReinFlow, LeRobot's pi0, pi05 and smolvla, and openpi, against their own samplers on stand-ins."""

import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from standins_flow import (
    ConditionedMLP,
    DiffusionEval,
    DiffusionModel,
    LeRobotVLA,
    OpenPiModel,
    OpenPiObservation,
    OpenPiPolicy,
    ReFlow,
    ShortcutFlow,
    vla_processors,
)

from flowrl.shapes import seeded_generator
from robot.adapters.dppo import DPPODiffusion
from robot.adapters.hydra_hosts import MinMax
from robot.adapters.lerobot import LeRobotFlow, adapt_lerobot
from robot.adapters.openpi import OpenPiFlow
from robot.adapters.reinflow import ReinFlowPolicy
from robot.composition import Composer
from robot.gpc import GPCPolicy
from robot.normalise import NormStats
from robot.types import ActionSpec, Observation

XY = ActionSpec(names=("x", "y"), control_rate_hz=20)
JOINTS = ActionSpec(names=("a", "b", "c"), control_rate_hz=20)
MEAN, STD = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([2.0, 2.0, 2.0])
INPUTS = {"state": ("object", "eef")}


def mlp():
    return ConditionedMLP(4, 2, 3)


def parts(batch=3):
    return Observation({"object": torch.randn(batch, 1, 2), "eef": torch.randn(batch, 1, 1)})


def cond(observation):
    return {"state": torch.cat([observation.values["object"], observation.values["eef"]], -1)}


def dppo(host, **kwargs):
    return DPPODiffusion(host=host, action=XY, inputs=INPUTS, **kwargs)


def vla(name="pi0", task="fold the towel"):
    before, after = vla_processors(MEAN, STD)
    return adapt_lerobot(LeRobotVLA(name), before, after, action=JOINTS, task=task)


def robot_view(batch=2):
    return Observation({"observation.state": torch.randn(batch, 1, 3), "observation.images.top": torch.rand(batch, 1, 3, 4, 4)})


@pytest.fixture
def openpi(monkeypatch):
    """The adapter, with the one openpi module that it imports."""
    module = ModuleType("openpi.models.model")
    module.Observation = OpenPiObservation
    for name in ("openpi", "openpi.models", "openpi.models.model"):
        monkeypatch.setitem(sys.modules, name, module)
    inputs = {"observation/state": ("state",), "observation/image": ("agentview",)}

    def make(**kwargs):
        host = OpenPiPolicy(OpenPiModel(), q01=np.array([-1.0, 0.0, 2.0]), q99=np.array([3.0, 4.0, 6.0]), **kwargs)
        return OpenPiFlow(host=host, action=JOINTS, inputs=inputs, prompt="open the drawer", replan_steps=3)

    return make


# ------------------------------------------------------------------------------------------------------------------- DPPO


@pytest.mark.parametrize("settings", [{}, {"use_ddim": True, "ddim_steps": 5}, {"predict_epsilon": False}], ids=["ddpm", "ddim", "sample"])
def test_dppo_alone_is_the_hosts_own_deterministic_evaluation(settings):
    policy, observation = dppo(DiffusionModel(mlp(), **settings)), parts()
    torch.manual_seed(9)
    expected = policy.host(cond(observation)).trajectories
    chunk = policy.act(observation, torch.Generator().manual_seed(9))
    torch.testing.assert_close(chunk.values, expected, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"use_ddim": True, "ddim_steps": 5}], ids=["ddpm", "ddim"])
def test_a_fine_tuned_dppo_policy_answers_late_steps_with_its_fine_tuned_network(settings):
    base, tuned = mlp(), mlp()
    policy, observation = dppo(DiffusionEval(base, tuned, 2, **settings)), parts()
    edge = 8 if settings else 2  # DDIM visits 16, 12, 8, 4, 0: the last two are 4 and 0
    x, condition = torch.randn(3, 4, 2), policy.encode(observation)
    below, above = torch.full((3,), edge - 1), torch.full((3,), edge)
    with torch.no_grad():
        torch.testing.assert_close(policy.predict(x, below, condition), tuned(x, below, condition))
        torch.testing.assert_close(policy.predict(x, above, condition), base(x, above, condition))
        mixed = policy.predict(x, torch.tensor([edge - 1, edge, edge]), condition)
        torch.testing.assert_close(mixed[:1], tuned(x, below, condition)[:1])
        torch.testing.assert_close(mixed[1:], base(x, above, condition)[1:])
        torch.manual_seed(9)
        expected = policy.host(condition).trajectories
        torch.testing.assert_close(policy.act(observation, torch.Generator().manual_seed(9)).values, expected, rtol=0, atol=0)


def test_dppos_schedule_is_squaredcos_with_as_many_timesteps_as_steps():
    policy = dppo(DiffusionModel(mlp()))
    k = torch.arange(20)
    cosine = torch.cos((k + 1) / 20 / 1.008 * torch.pi / 2 + 0.008 / 1.008 * torch.pi / 2) ** 2
    expected = cosine / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    torch.testing.assert_close(policy.path.alphas_cumprod[:-1].float(), expected[:-1], rtol=1e-4, atol=1e-6)
    assert float(policy.path.alphas_cumprod[-1]) < 1e-4
    assert (policy.sampling.steps, policy.sampling.sampler, policy.sampling.clip) == (20, "sde", 1.0)


def test_dppos_normaliser_file_maps_observations_and_actions(tmp_path):
    np.savez(tmp_path / "n.npz", obs_min=[0.0, 0, 0], obs_max=[2.0, 4, 8], action_min=[-1.0, 0.0], action_max=[1.0, 4.0])
    policy = dppo(DiffusionModel(mlp()), normalization=MinMax.read(tmp_path / "n.npz"))
    torch.testing.assert_close(policy.stats.offset, torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(policy.stats.scale, torch.tensor([1.0, 2.0]))
    observation = Observation({"object": torch.tensor([[[2.0, 2.0]]]), "eef": torch.tensor([[[0.0]]])})
    torch.testing.assert_close(policy.encode(observation)["state"], torch.tensor([[[1.0, 0.0, -1.0]]]), atol=1e-5, rtol=0)


def test_pictures_go_to_dppo_as_bytes_count_them():
    host = DiffusionModel(mlp())
    policy = DPPODiffusion(host=host, action=XY, inputs={"state": ("eef",), "rgb": ("camera",)})
    observation = Observation({"eef": torch.zeros(1, 1, 3), "camera": torch.full((1, 1, 3, 2, 2), 0.2)})
    torch.testing.assert_close(policy.encode(observation)["rgb"], torch.full((1, 1, 3, 2, 2), 51.0))


# --------------------------------------------------------------------------------------------------------------- ReinFlow


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_reinflow_alone_keeps_the_hosts_own_grid_and_clamps(steps):
    policy = ReinFlowPolicy(host=ReFlow(mlp(), act_min=-0.8, act_max=0.8), action=XY, inputs=INPUTS, steps=steps)
    observation = parts()
    noise = torch.randn(3, 4, 2, generator=seeded_generator(6))
    expected = policy.host.sample(cond(observation), steps, z=noise).trajectories
    torch.testing.assert_close(policy.act(observation, seeded_generator(6)).values, expected, rtol=0, atol=1e-6)


def test_reinflows_velocity_and_time_are_flipped_for_a_composition():
    policy = ReinFlowPolicy(host=ReFlow(mlp()), action=XY, inputs=INPUTS, steps=4)
    x, condition = torch.randn(3, 4, 2), policy.encode(parts())
    with torch.no_grad():  # their velocity is action − noise at a time that runs from noise to action
        theirs = policy.host.network(x, torch.full((3,), 0.75), condition)
        torch.testing.assert_close(policy.predict(x, torch.full((3,), 0.25), condition), -theirs)


def test_in_a_composition_reinflow_takes_the_plain_euler_grid():
    policy, observation = ReinFlowPolicy(host=ReFlow(mlp()), action=XY, inputs=INPUTS, steps=5), parts()
    field = Composer([policy.member()]).bound(observation, (3, 4, 2))
    x = z = torch.randn(3, 4, 2)
    with torch.no_grad():
        for t, s in pairwise([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]):
            x = x + (s - t) * field(x, t)
        for k in range(5):
            z = z + policy.host.network(z, torch.full((3,), k / 5), policy.encode(observation)) / 5
    torch.testing.assert_close(x, z, rtol=0, atol=1e-5)


def test_a_shortcut_flow_is_refused():
    with pytest.raises(ValueError, match="predicts jumps of a given length"):
        ReinFlowPolicy(host=ShortcutFlow(mlp()), action=XY, inputs=INPUTS)


# -------------------------------------------------------------------------------------------------- pi0, pi05, smolvla, openpi


@pytest.mark.parametrize("name", ["pi0", "pi05", "smolvla"])
def test_a_lerobot_vla_alone_is_its_own_euler_loop(name):
    policy, observation = vla(name), robot_view()
    assert policy.sensors == ("observation.state", "observation.images.top")  # no empty camera
    noise = torch.randn(2, 5, 6, generator=seeded_generator(8))
    batch = policy.preprocessor({**{key: value[:, -1] for key, value in observation.values.items()}, "task": ["fold the towel"] * 2})
    expected = policy.postprocessor(policy.host.predict_action_chunk(batch, noise=noise))
    torch.testing.assert_close(policy.act(observation, seeded_generator(8)).values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["pi0", "smolvla"])
def test_a_vlas_prefix_is_encoded_once_a_chunk(name):
    policy = vla(name)
    Composer([policy.member()]).sample((2, 5, 3), steps=10, condition=robot_view())
    assert policy.host.model.prefixes == 1
    assert policy.host.model.queries == 10
    assert "denoise_step" not in vars(policy.host.model)


def test_a_composition_of_one_vla_is_its_own_euler_loop_with_its_padding():
    policy, observation = vla(), robot_view()
    member = policy.member()
    assert (member.private_dims, member.horizon) == (3, 5)
    condition = policy.encode(observation)
    noise = torch.randn(2, 5, 6)
    field = Composer([member]).bound(observation, (2, 5, 3))
    x = noise
    with torch.no_grad():
        for step in range(10):
            x = x - field(x, 1 - step / 10) / 10
        torch.testing.assert_close(x, policy.denoise(noise, condition), rtol=0, atol=1e-6)


def test_padding_stays_with_its_owner_when_policies_of_two_kinds_compose():
    policy, observation = vla(), Observation({**robot_view().values, "eef": torch.randn(2, 1, 3)})
    seen = []

    class Spy(ReFlow):
        pass

    small = Spy(ConditionedMLP(5, 3, 3), horizon_steps=5, action_dim=3)
    small.network.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    stats = MinMax(observation=NormStats(torch.zeros(3), torch.ones(3)), action=NormStats(MEAN, STD))
    other = ReinFlowPolicy(host=small, action=JOINTS, inputs={"state": ("eef",)}, steps=4, normalization=stats)
    composed = GPCPolicy(policies=(policy, other), weights=(0.5, 0.5))
    assert composed.sampling.steps == 10
    chunk = composed.act(observation, seeded_generator(0))
    assert chunk.values.shape == (2, 5, 3)
    assert set(seen) == {torch.Size([2, 5, 3])}  # never the 6 of the VLA's network
    assert policy.host.model.queries == small.network.calls == 10


def test_rows_of_a_prefix_can_be_chosen_so_that_weights_may_differ_by_row():
    policy, observation = vla("smolvla"), robot_view(3)
    for adapter in (policy, vla("pi0")):
        prefix = adapter.encode(observation)
        x, time = torch.randn(3, 5, 6), torch.full((3,), 0.5)
        rows = torch.tensor([2, 0, 2])
        with torch.no_grad():
            expected = adapter.predict(x[rows], time, adapter.encode(observation[rows]))
            torch.testing.assert_close(adapter.predict(x[rows], time, prefix[rows]), expected)
            torch.testing.assert_close(adapter.predict(x, time, prefix), adapter.predict(x, time, adapter.encode(observation)))
    pair = GPCPolicy(policies=(vla("pi0"), policy), weights=(0.5, 0.5))
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])  # each member is asked about two of the three rows
    together = pair.act(observation, [seeded_generator(k) for k in range(3)], weights=weights).values
    alone = pair.act(observation[[2]], [seeded_generator(2)]).values
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-5)


def test_openpi_alone_is_what_its_policy_infers(openpi):
    policy, observation = openpi(), Observation({"state": torch.randn(2, 1, 3), "agentview": torch.rand(2, 1, 3, 4, 4)})
    noise = torch.randn(2, 5, 6, generator=seeded_generator(4))
    expected = []
    for row in range(2):
        picture = (observation.values["agentview"][row, 0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        request = {
            "observation/state": observation.values["state"][row, 0].numpy(),
            "observation/image": picture,
            "prompt": "open the drawer",
        }
        expected.append(torch.as_tensor(policy.host.infer(request, noise=noise[row].numpy())["actions"]))
    chunk = policy.act(observation, seeded_generator(4))
    torch.testing.assert_close(chunk.values, torch.stack(expected).float(), rtol=0, atol=2e-6)
    assert (policy.name, policy.execute, policy.private_dims) == ("pi0", 3, 3)
    assert policy.model.prefixes == 3


def test_openpis_quantiles_become_offset_and_scale(openpi):
    torch.testing.assert_close(openpi().stats.offset, torch.tensor([1.0, 2.0, 4.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(openpi().stats.scale, torch.tensor([2.0, 2.0, 2.0]), atol=1e-5, rtol=0)


def test_openpi_actions_that_are_relative_to_the_state_are_refused(openpi):
    with pytest.raises(ValueError, match=r"relative actions"):
        openpi(absolute=True).member()


def test_openpis_jax_models_are_refused_with_the_remedy(openpi):
    host = SimpleNamespace(_is_pytorch_model=False)
    with pytest.raises(ValueError, match="convert_jax_model_to_pytorch"):
        OpenPiFlow(host=host, action=JOINTS, inputs={})


@pytest.mark.parametrize("setting", ["adapt_to_pi_aloha", "use_relative_actions", "use_visual_memory", "use_proprioceptive_memory"])
def test_vlas_whose_actions_or_memory_do_not_fit_are_refused(setting):
    host, (before, after) = LeRobotVLA(), vla_processors(MEAN, STD)
    setattr(host.config, setting, True)
    with pytest.raises(ValueError, match=setting):
        LeRobotFlow(host=host, action=JOINTS, preprocessor=before, postprocessor=after)


def test_a_vla_with_real_time_chunking_is_refused():
    host, (before, after) = LeRobotVLA(), vla_processors(MEAN, STD)
    host.config.rtc_config = SimpleNamespace(enabled=True)
    with pytest.raises(ValueError, match="real-time chunking"):
        LeRobotFlow(host=host, action=JOINTS, preprocessor=before, postprocessor=after)
