"""The LeRobot plug-in: driving without LeRobot, the written distribution, and all of it inside LeRobot where that can be imported."""

import ast
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from lerobot_here import lerobot_module, random_diffusion_policy
from standins_flow import LeRobotVLA, vla_processors

from flowrl.shapes import randn
from robot.adapters.lerobot import adapt_lerobot
from robot.adapters.lerobot_plugin.__main__ import main, write_distribution
from robot.adapters.lerobot_plugin.driver import BatchDriver, with_task
from robot.gpc import GPCPolicy
from robot.types import ActionChunk, ActionSpec

XY = ActionSpec(names=("x", "y"), control_rate_hz=10)


@dataclass
class Recorder:
    """Returns the frames that it saw, and noise; executes two of three actions, the first one past."""

    sensors = ("agent_pos",)
    history, execute, action = 2, 2, XY
    calls: int = 0

    def act(self, observation, generator=None):
        self.calls += 1
        seen = observation.values["agent_pos"][:, :, 0]  # (batch, 2)
        noise = randn((len(seen), 3), generator, device="cpu")
        values = torch.stack([torch.cat([torch.full((len(seen), 1), -1.0), seen], 1), noise], -1)
        return ActionChunk(values=values, spec=self.action, first=1)


def frames(value, batch=2):
    return {"observation.state": torch.full((batch, 1), float(value)), "task": ["push"] * batch}


def test_the_driver_repeats_the_first_frame_and_asks_once_a_chunk():
    driver = BatchDriver(Recorder(), rename={"agent_pos": "observation.state"})
    seen = [driver.next_action(frames(value))[0, 0].item() for value in (5, 6, 7, 8)]
    assert seen == [5, 5, 6, 7]  # frames (5, 5), executed over two steps, then (6, 7): every control step was seen
    assert driver.policy.calls == 2


def test_the_drivers_noise_depends_on_row_chunk_and_episode_alone():
    def noise(driver, batch):
        return torch.stack([driver.next_action(frames(0, batch))[:, 1] for _ in range(4)], 1)

    wide, narrow = (BatchDriver(Recorder(), seed=3, rename={"agent_pos": "observation.state"}) for _ in range(2))
    first = noise(wide, 3)
    torch.testing.assert_close(noise(narrow, 1), first[:1])
    wide.reset()
    again = noise(wide, 3)
    assert not torch.equal(again, first)
    values = torch.cat([first, again]).flatten()
    assert len(values.unique()) == values.numel()


def test_a_missing_key_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"no agent_pos; it has observation\.state, task; name them with policy\.rename"):
        BatchDriver(Recorder()).next_action(frames(0))


def test_every_member_that_reads_language_is_told_the_task():
    before, after = vla_processors(torch.zeros(3), torch.ones(3))
    vla = adapt_lerobot(LeRobotVLA(), before, after, action=ActionSpec(names=("a", "b", "c"), control_rate_hz=10))
    told = with_task(GPCPolicy(policies=(vla, replace(vla, name="other")), weights=(0.5, 0.5)), "wave")
    assert [member.task for member in told.policies] == ["wave", "wave"]
    assert vla.task == ""
    recorder = Recorder()
    assert with_task(recorder, "wave") is recorder


def test_the_written_distribution_has_the_name_that_lerobot_looks_for(tmp_path):
    main(["--out", str(tmp_path / "plugin")])
    project = (tmp_path / "plugin" / "pyproject.toml").read_text()
    assert 'name = "lerobot_policy_gpc"' in project
    package = ast.parse((tmp_path / "plugin" / "lerobot_policy_gpc" / "__init__.py").read_text())
    imported = {
        node.module.rsplit(".", 1)[1]: [name.name for name in node.names] for node in package.body if isinstance(node, ast.ImportFrom)
    }
    assert imported == {
        "configuration_gpc": ["GpcConfig"],
        "modeling_gpc": ["GpcPolicy"],
        "processor_gpc": ["make_gpc_pre_post_processors"],
    }
    with pytest.raises(ValueError, match="not empty"):
        write_distribution(tmp_path / "plugin")


def test_importing_the_adapters_imports_no_host():
    hosts = ("lerobot", "diffusion_policy", "robomimic", "openpi", "hydra", "dill", "diffusers", "transformers", "jax")
    code = (
        "import sys\n"
        "from robot.adapters import diffusion_policy, dppo, lerobot, lerobot_plugin, openpi, reinflow, robomimic\n"
        "from robot.adapters.lerobot_plugin import driver, __main__\n"
        f"found = [name for name in {hosts!r} if name in sys.modules]\n"
        "raise SystemExit(', '.join(found) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inside_lerobot_checkpoints_load_compose_and_act(tmp_path):
    folders = []
    for kind, high in (("DDPM", 14.0), ("DDIM", 16.0)):
        policy, _, before, after = random_diffusion_policy(kind, high=high)
        folder = tmp_path / kind.lower()
        folder.mkdir()
        for part in (policy, before, after):
            part.save_pretrained(folder)
        folders.append(str(folder))
    from robot.adapters.lerobot_plugin import configuration_gpc  # registers the type, as LeRobot's discovery does

    factory, types = lerobot_module("lerobot.policies.factory"), lerobot_module("lerobot.configs.types")
    outputs = {"action": types.PolicyFeature(type=types.FeatureType.ACTION, shape=(2,))}
    config = factory.make_policy_config("gpc", members=folders, weights=[0.4, 0.6], device="cpu", output_features=outputs)
    assert isinstance(config, configuration_gpc.GpcConfig)
    policy = factory.get_policy_class("gpc")(config=config).eval()
    before, after = factory.make_pre_post_processors(config)
    policy.reset()
    batch = {"observation.state": torch.zeros(3, 3), "observation.environment_state": torch.zeros(3, 2), "task": ["push"] * 3}
    with torch.inference_mode():
        actions = torch.stack([after(policy.select_action(before(dict(batch)))) for _ in range(5)], 1)
    assert actions.shape == (3, 5, 2)
    assert bool(torch.isfinite(actions).all())
    assert bool((actions[..., 1] >= 9).all())  # within the members' ranges
    assert bool((actions[..., 1] <= 17).all())
    assert len(list(policy.hosts)) == 2
