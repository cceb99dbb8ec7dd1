"""The adapters against the real host libraries with random weights, where they can be imported.

None of them installs beside flowrl: put a clone of the host on PYTHONPATH (table in ``robot.adapters``); what is missing is skipped.
"""

import importlib
import importlib.util
from collections import OrderedDict

import pytest
import torch
from lerobot_here import random_diffusion_policy

from flowrl.shapes import seeded_generator
from robot.adapters.diffusion_policy import StanfordDiffusion
from robot.adapters.dppo import DPPODiffusion
from robot.adapters.lerobot import LeRobotDiffusion
from robot.adapters.reinflow import ReinFlowPolicy
from robot.adapters.robomimic import RobomimicDiffusion
from robot.composition import Composer
from robot.types import ActionSpec, Observation

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
XY = ActionSpec(names=("x", "y"), control_rate_hz=10)


def host(module):
    """A module of a host, or a skip that says why."""
    root = module.split(".")[0]
    if importlib.util.find_spec(root) is None:
        pytest.skip(f"{root} is not on the path")
    try:
        return importlib.import_module(module)
    except Exception as error:
        pytest.skip(f"{module} cannot be imported: {type(error).__name__}: {error}")


def parts(batch=2, history=2):
    return Observation({"object": torch.randn(batch, history, 2), "eef": torch.randn(batch, history, 1)})


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_real_lerobot_diffusion(kind):
    policy_host, _, before, after = random_diffusion_policy(kind)
    policy = LeRobotDiffusion(host=policy_host, action=XY, preprocessor=before, postprocessor=after)
    torch.testing.assert_close(policy.stats.offset, torch.tensor([1.0, 12.0]))
    torch.testing.assert_close(policy.stats.scale, torch.tensor([2.0, 2.0]))

    observation = Observation({"observation.state": torch.randn(2, 2, 3), "observation.environment_state": torch.randn(2, 2, 2)})
    noise = torch.randn(2, 8, 2, generator=seeded_generator(1))
    torch.manual_seed(5)  # their generate_actions passes no generator: its steps draw from the global one
    with torch.no_grad():
        expected = after(policy.host.diffusion.generate_actions(before(dict(observation.values)), noise=noise))
        condition = policy.encode(observation)
        torch.manual_seed(5)
        mine = policy.stats.unnormalise(policy.denoise(noise, condition))
    torch.testing.assert_close(mine[:, 1:5], expected, rtol=0, atol=1e-5)
    actions = Composer([policy.member()], clip=1.0).sample((2, 8, 2), steps=5, condition=observation)
    assert bool(torch.isfinite(actions).all())


@pytest.mark.parametrize("way", ["global", "local", "inpaint", "cond"])
def test_real_diffusion_policy(way):
    schedulers = importlib.import_module("diffusers")
    unet, transformer = (
        host("diffusion_policy.policy.diffusion_unet_lowdim_policy"),
        host("diffusion_policy.policy.diffusion_transformer_lowdim_policy"),
    )
    normalizer = importlib.import_module("diffusion_policy.model.common.normalizer").LinearNormalizer()
    normalizer.fit({"obs": torch.rand(50, 3) * 4, "action": torch.rand(50, 2) * torch.tensor([2.0, 8.0])})
    scheduler = schedulers.DDPMScheduler(num_train_timesteps=10, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    common = {"noise_scheduler": scheduler, "horizon": 8, "obs_dim": 3, "action_dim": 2, "n_action_steps": 4, "n_obs_steps": 2}
    if way == "cond":
        net = transformer.TransformerForDiffusion(2, 2, 8, n_obs_steps=2, cond_dim=3, n_layer=1, n_head=2, n_emb=16, obs_as_cond=True)
        policy_host = transformer.DiffusionTransformerLowdimPolicy(net, obs_as_cond=True, **common)
    else:
        sizes = {"global": {"global_cond_dim": 6}, "local": {"local_cond_dim": 3}, "inpaint": {}}[way]
        net = unet.ConditionalUnet1D(2 + 3 * (way == "inpaint"), down_dims=[16, 32], n_groups=4, diffusion_step_embed_dim=16, **sizes)
        flags = {"obs_as_global_cond": way == "global", "obs_as_local_cond": way == "local"}
        policy_host = unet.DiffusionUnetLowdimPolicy(net, **common, **flags)
    policy_host.set_normalizer(normalizer)
    policy = StanfordDiffusion(host=policy_host.eval(), action=XY, inputs={"obs": ("object", "eef")})
    observation = parts()
    torch.manual_seed(3)
    with torch.no_grad():
        expected = policy_host.predict_action({"obs": torch.cat([observation.values["object"], observation.values["eef"]], -1)})
    chunk = policy.act(observation, torch.Generator().manual_seed(3))
    torch.testing.assert_close(chunk.values, expected["action_pred"], rtol=0, atol=1e-4)
    torch.testing.assert_close(chunk.to_execute(policy.execute), expected["action"], rtol=0, atol=1e-4)
    assert bool(torch.isfinite(Composer([policy.member()], clip=1.0).sample((2, 8, 2), steps=5, condition=observation)).all())


@pytest.mark.parametrize("scheme", ["ddpm", "ddim"])
def test_real_robomimic(scheme):
    algo = host("robomimic.algo.diffusion_policy")
    from robomimic.config import config_factory
    from robomimic.utils import obs_utils

    config = config_factory("diffusion_policy")
    with config.values_unlocked():
        config.observation.modalities.obs.low_dim = ["object", "eef"]
        config.observation.modalities.obs.rgb = []
        config.algo.ema.enabled = False  # its EMA helper is diffusers 0.11's
        config.algo.horizon.observation_horizon, config.algo.horizon.action_horizon, config.algo.horizon.prediction_horizon = 2, 4, 16
        config.algo.optim_params.policy.learning_rate.scheduler_type = "linear"
        config.algo.optim_params.policy.learning_rate.epoch_schedule = []
        config.algo.ddpm.enabled, config.algo.ddim.enabled = scheme == "ddpm", scheme == "ddim"
    obs_utils.initialize_obs_utils_with_config(config)
    shapes = OrderedDict(object=(2,), eef=(1,))
    policy_host = algo.DiffusionPolicyUNet(
        algo_config=config.algo,
        obs_config=config.observation,
        global_config=config,
        obs_key_shapes=shapes,
        ac_dim=2,
        device=torch.device("cpu"),
    )
    policy_host.set_eval()
    policy = RobomimicDiffusion(host=policy_host, action=XY)
    observation = parts()
    torch.manual_seed(3)
    with torch.no_grad():
        expected = policy_host._get_action_trajectory(dict(observation.values))
    chunk = policy.act(observation, torch.Generator().manual_seed(3))
    torch.testing.assert_close(chunk.to_execute(policy.execute), expected, rtol=0, atol=1e-5)
    assert bool(torch.isfinite(Composer([policy.member()], clip=1.0).sample((2, 16, 2), steps=5, condition=observation)).all())


def hydra_hosts_are(repository):
    """DPPO and ReinFlow both call their package ``model``: skip unless it is the one that is meant."""
    if importlib.util.find_spec("model") is None:
        pytest.skip(f"no clone of {repository} is on the path")


@pytest.mark.parametrize("ddim", [False, True])
def test_real_dppo(ddim):
    hydra_hosts_are("dppo")
    diffusion, mlp = host("model.diffusion.diffusion_vpg"), host("model.diffusion.mlp_diffusion")
    network = mlp.DiffusionMLP(action_dim=2, horizon_steps=4, cond_dim=3, mlp_dims=[32, 32, 32], residual_style=True)
    settings = {"use_ddim": True, "ddim_steps": 5} if ddim else {}
    model = diffusion.VPGDiffusion(
        actor=network,
        critic=torch.nn.Linear(1, 1),
        ft_denoising_steps=3,
        horizon_steps=4,
        obs_dim=3,
        action_dim=2,
        denoising_steps=20,
        device="cpu",
        randn_clip_value=3,
        **settings,
    ).eval()
    with torch.no_grad():
        for weight in model.actor_ft.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    policy = DPPODiffusion(host=model, action=XY, inputs={"state": ("object", "eef")})
    observation = parts(history=1)
    torch.manual_seed(3)
    expected = model(policy.encode(observation), deterministic=True, return_chain=False).trajectories
    torch.testing.assert_close(policy.act(observation, torch.Generator().manual_seed(3)).values, expected, rtol=0, atol=1e-6)
    assert bool(torch.isfinite(Composer([policy.member()], clip=1.0).sample((2, 4, 2), steps=20, condition=observation)).all())


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_real_reinflow(steps):
    hydra_hosts_are("ReinFlow")
    reflow, mlp = host("model.flow.reflow"), host("model.flow.mlp_flow")
    network = mlp.FlowMLP(4, 2, 3, mlp_dims=[32, 32, 32], residual_style=True, activation_type="ReLU")
    model = reflow.ReFlow(network, torch.device("cpu"), 4, 2, -1.0, 1.0, 3, max_denoising_steps=4, seed=None).eval()
    policy = ReinFlowPolicy(host=model, action=XY, inputs={"state": ("object", "eef")}, steps=steps)
    observation = parts(history=1)
    noise = torch.randn(2, 4, 2, generator=seeded_generator(1))
    expected = model.sample(policy.encode(observation), steps, z=noise.clone()).trajectories
    torch.testing.assert_close(policy.act(observation, seeded_generator(1)).values, expected, rtol=0, atol=1e-6)
