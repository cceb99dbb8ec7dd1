"""Sources of policies: what loads, what needs trust, what is refused and why."""

import json
import pickle
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from standins_diffusion import DiffusionUnetLowdimPolicy, scheduler
from standins_flow import ConditionedMLP, DiffusionModel, LeRobotVLA, ReFlow, vla_processors

from flowrl.config import instantiate
from flowrl.errors import CheckpointError, ConfigError, MissingExtraError
from robot.adapters.diffusion_policy import DiffusionPolicyCheckpoint
from robot.adapters.dppo import DPPOCheckpoint
from robot.adapters.hosts import first_query, host_module
from robot.adapters.hydra_hosts import MinMax
from robot.adapters.lerobot import LeRobotPolicyFile, adapt_lerobot, refuse
from robot.adapters.openpi import OpenPiCheckpoint
from robot.adapters.reinflow import ReinFlowCheckpoint, flow_weights
from robot.adapters.robomimic import RobomimicCheckpoint, averaged
from robot.adapters.trust import with_trust
from robot.types import ActionSpec

XY = ActionSpec(names=("x", "y"), control_rate_hz=10)
INPUTS = {"state": ("object", "eef")}
HYDRA = """
base_policy_path:
normalization_path: ${oc.env:NOT_SET}/normalization.npz
obs_dim: 3
cond_steps: 1
act_steps: 4
device: cuda:0
model:
  _target_: model.diffusion.diffusion_eval_ft.DiffusionEval
  network_path: ${base_policy_path}
  cond_dim: ${eval:'${obs_dim} * ${cond_steps}'}
  device: ${device}
"""


@pytest.fixture
def fake(monkeypatch):
    """Put modules with the given attributes where an import finds them."""

    def make(**modules):
        for name, attributes in modules.items():
            dotted = name.replace("__", ".")
            for end in range(1, dotted.count(".") + 2):
                part = ".".join(dotted.split(".")[:end])
                if part not in sys.modules:
                    monkeypatch.setitem(sys.modules, part, ModuleType(part))
            for key, value in attributes.items():
                monkeypatch.setattr(sys.modules[dotted], key, value, raising=False)

    return make


class Bomb:
    """Unpickling it leaves a mark."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("source", [DiffusionPolicyCheckpoint, RobomimicCheckpoint])
def test_a_pickle_is_not_even_opened_unless_it_is_trusted(source, tmp_path):
    file, mark = tmp_path / "latest.ckpt", tmp_path / "ran"
    file.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ConfigError, match=r"pickle, so loading it runs whatever code.*trust_checkpoint: true.*--trust-checkpoint"):
        source(path=file, action=XY).load()
    assert not mark.exists()


@pytest.mark.parametrize("source", [DPPOCheckpoint, ReinFlowCheckpoint])
def test_a_hydra_config_is_not_even_read_unless_it_is_trusted(source, tmp_path):
    (tmp_path / "eval.yaml").write_text(HYDRA)
    with pytest.raises(ConfigError, match=r"calls whatever it names.*trust_checkpoint: true"):
        source(path=tmp_path / "state.pt", config=tmp_path / "eval.yaml", action=XY, inputs=INPUTS).load()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("DiffusionPolicyCheckpoint", {"inputs": {"obs": ["object", "eef"]}, "trust_checkpoint": True}),
        ("RobomimicCheckpoint", {"trust_checkpoint": True}),
        ("LeRobotPolicyFile", {"task": "wave"}),
        ("OpenPiCheckpoint", {"config": "pi0_libero", "inputs": {"observation/state": ["state"]}}),
        ("DPPOCheckpoint", {"config": "nowhere.yaml", "inputs": {"state": ["object"]}, "trust_checkpoint": True}),
        ("ReinFlowCheckpoint", {"config": "nowhere.yaml", "inputs": {"state": ["object"]}, "trust_checkpoint": True}),
    ],
)
def test_every_source_is_built_from_yaml_and_names_a_missing_checkpoint(name, fields):
    action = {"target": "robot.types.ActionSpec", "names": ["x", "y"], "control_rate_hz": 10}
    source = instantiate({"target": f"robot.adapters.{name}", "path": "nowhere", "action": action, **fields})
    assert source.action == XY
    with pytest.raises(CheckpointError, match=r"nowhere.* does not exist"):
        source.load()


def test_trust_on_the_command_line_reaches_every_component_that_asks_for_it():
    member = {"weight": 0.5, "policy": {"target": "robot.adapters.RobomimicCheckpoint", "path": "a.pth"}}
    other = {"weight": 0.5, "policy": {"target": "robot.adapters.LeRobotPolicyFile", "path": "b"}}
    config = {"target": "robot.Composition", "members": [member, other, {"target": "robot.no_such.Thing"}], "steps": 3}
    trusted = with_trust(config)
    assert trusted["members"][0]["policy"] == {**member["policy"], "trust_checkpoint": True}
    assert trusted["members"][1:] == config["members"][1:]
    assert {**trusted, "members": 0} == {**config, "members": 0}
    assert "trust_checkpoint" not in member["policy"]


def test_a_missing_host_library_is_named_with_its_environment(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(MissingExtraError, match=r"openpi\.training\.config cannot be imported .*torch==2\.7\.1"):
        OpenPiCheckpoint(path=tmp_path, config="pi0_libero", action=XY, inputs={}).load()
    with pytest.raises(MissingExtraError, match="remedy"):
        host_module("no_such_library_anywhere", "remedy")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("act", "no score to compose"),
        ("vqbet", "discrete codes"),
        ("tdmpc", "world model"),
        ("pi0_fast", "tokens"),
        ("sac", "one Gaussian"),
        ("evo1", "uniform noise"),
        ("xvla", "one fixed noise"),
        ("smolvl", "did you mean 'smolvla'"),
    ],
)
def test_lerobot_policies_without_a_gaussian_path_are_refused_with_the_reason(kind, reason):
    with pytest.raises(ValueError, match=reason):
        refuse(kind)
    host, (before, after) = LeRobotVLA(), vla_processors(torch.zeros(3), torch.ones(3))
    host.name = kind
    with pytest.raises(ValueError, match=reason):
        adapt_lerobot(host, before, after, action=XY)


def test_lerobots_folder_is_loaded_through_its_own_factory_on_the_device_that_is_asked_for(fake, tmp_path):
    (tmp_path / "model.safetensors").touch()
    seen = {}
    config = SimpleNamespace(type="pi0", device="cuda")
    policy_class = SimpleNamespace(from_pretrained=lambda path, config: seen.update(path=path, device=config.device) or LeRobotVLA())

    def processors(config, pretrained_path, preprocessor_overrides):
        seen.update(overrides=preprocessor_overrides)
        return vla_processors(torch.zeros(3), torch.ones(3))

    fake(
        lerobot__policies__factory={"get_policy_class": lambda kind: policy_class, "make_pre_post_processors": processors},
        lerobot__configs__policies={"PreTrainedConfig": SimpleNamespace(from_pretrained=lambda path: config)},
    )
    joints = ActionSpec(names=("a", "b", "c"), control_rate_hz=10)
    policy = LeRobotPolicyFile(path=tmp_path, action=joints, task="wave").load("cpu")
    assert seen == {"path": str(tmp_path), "device": "cpu", "overrides": {"device_processor": {"device": "cpu"}}}
    assert (policy.task, policy.name, policy.private_dims) == ("wave", "LeRobotVLA", 3)


def test_a_trusted_diffusion_policy_checkpoint_gives_its_averaged_policy(fake, tmp_path):
    plain, ema = (DiffusionUnetLowdimPolicy("global", scheduler()) for _ in range(2))
    training = SimpleNamespace(use_ema=True)
    config = SimpleNamespace(_target_="diffusion_policy.workspace.W", training=training)
    torch.save({"cfg": None}, tmp_path / "latest.ckpt")
    loaded = {}

    class Workspace:
        model, ema_model = plain, ema

        def __init__(self, cfg, output_dir):
            assert cfg is config

        def load_payload(self, payload, exclude_keys, include_keys):
            loaded.update(exclude=exclude_keys, include=include_keys)

    fake(dill={}, diffusion_policy={}, hydra__utils={"get_class": lambda name: Workspace})
    real = torch.load
    torch.load = lambda *args, **kwargs: {"cfg": config}  # the pickle module is a stand-in, too
    try:
        source = DiffusionPolicyCheckpoint(
            path=tmp_path / "latest.ckpt", action=XY, inputs={"obs": ("object", "eef")}, trust_checkpoint=True, inference_steps=7
        )
        policy = source.load()
    finally:
        torch.load = real
    assert policy.host is ema
    assert policy.sampling.steps == 7
    assert loaded == {"exclude": ["optimizer"], "include": []}  # pickles inside the pickle stay closed


def test_robomimics_averaged_weights_become_its_weights():
    saved = {"model": {"nets": 1, "ema": 2, "optimizers": {}}, "config": json.dumps({"algo": {"ema": {"enabled": True}}}), "algo_name": "x"}
    changed = averaged(saved)
    assert changed["model"] == {"nets": 2, "optimizers": {}}
    assert json.loads(changed["config"]) == {"algo": {"ema": {"enabled": False}}}
    assert saved["model"]["nets"] == 1
    assert averaged({"model": {"nets": 1, "ema": None}, "config": "{}"})["model"]["nets"] == 1


def test_another_algorithm_of_robomimic_is_refused(fake, tmp_path):
    fake(robomimic__utils__file_utils={})
    torch.save({"algo_name": "bc"}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="robomimic's 'bc', which has no Gaussian path"):
        RobomimicCheckpoint(path=tmp_path / "model.pth", action=XY, trust_checkpoint=True).load()


def write_stats(path):
    np.savez(path, obs_min=-np.ones(3), obs_max=np.ones(3), action_min=-np.ones(2), action_max=3 * np.ones(2))
    return path


def test_dppos_config_builds_its_model_about_the_given_weights(fake, tmp_path):
    built = {}
    fake(
        model__diffusion__diffusion_eval={},
        hydra__utils={"instantiate": lambda node: built.update(node) or DiffusionModel(ConditionedMLP(4, 2, 3))},
    )
    (tmp_path / "eval.yaml").write_text(HYDRA)
    (tmp_path / "state.pt").touch()
    common = {"path": tmp_path / "state.pt", "config": tmp_path / "eval.yaml", "action": XY, "inputs": INPUTS, "trust_checkpoint": True}
    with pytest.raises(ConfigError, match=r"normalises its data: give the normalization\.npz"):
        DPPOCheckpoint(**common).load()
    policy = DPPOCheckpoint(**common, normalization=write_stats(tmp_path / "n.npz")).load()
    assert built["network_path"] == str(tmp_path / "state.pt")
    assert built["_target_"] == "model.diffusion.diffusion_eval.DiffusionEval"  # where the module really is
    assert (built["cond_dim"], built["device"]) == (3, "cpu")
    assert (policy.cond_steps, policy.execute) == (1, 4)
    torch.testing.assert_close(policy.stats.offset, torch.ones(2))


@pytest.mark.parametrize("prefix", ["network.", "actor_ft.policy."])
def test_reinflow_weights_are_the_pretrained_or_the_fine_tuned_ones(prefix, tmp_path, fake):
    trained = ReFlow(ConditionedMLP(4, 2, 3))
    state = {key.replace("network.", prefix): value for key, value in trained.state_dict().items()}
    torch.save({"model": {**state, "actor_ft.mlp_logvar.weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "state.pt")
    torch.testing.assert_close(flow_weights(tmp_path / "state.pt"), dict(trained.state_dict()))
    fake(model__flow__reflow={}, hydra__utils={"instantiate": lambda node: ReFlow(ConditionedMLP(4, 2, 3))})
    (tmp_path / "eval.yaml").write_text(HYDRA.replace("diffusion.diffusion_eval_ft.DiffusionEval", "flow.reflow.ReFlow"))
    source = ReinFlowCheckpoint(
        path=tmp_path / "state.pt",
        config=tmp_path / "eval.yaml",
        action=XY,
        inputs=INPUTS,
        steps=8,
        normalization=write_stats(tmp_path / "n.npz"),
        trust_checkpoint=True,
    )
    policy = source.load()
    torch.testing.assert_close(dict(policy.host.state_dict()), dict(trained.state_dict()))
    assert policy.sampling.steps == 8


def test_a_file_without_a_flow_is_refused(tmp_path):
    torch.save({"model": {"critic.weight": torch.zeros(1)}}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="no flow of ReinFlow"):
        flow_weights(tmp_path / "state.pt")
    np.savez(tmp_path / "n.npz", obs_min=np.zeros(1))
    with pytest.raises(CheckpointError, match="has no obs_max, action_min, action_max"):
        MinMax.read(tmp_path / "n.npz")


def test_a_host_that_samples_in_another_way_is_noticed():
    class Host:
        def step(self):
            """Never called."""

    with pytest.raises(ValueError, match="did not call step"):
        first_query(Host(), "step", lambda: None)
