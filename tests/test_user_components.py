"""Components of the user's own, named with a colon."""

import sys
from pathlib import Path

import pytest
import torch

from flowrl.cli.main import main
from flowrl.config import instantiate, instantiate_data, load_config, validate
from flowrl.config.user_code import user_targets
from flowrl.errors import ConfigError
from flowrl.train.describe import describe
from rewards import CompositeReward

REWARD = '''
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flowrl.rl import RewardBatch


@dataclass(frozen=True, kw_only=True)
class Redness:
    """Mean of red."""

    gain: float = 1.0
    weights: Mapping[str, float] = field(default_factory=lambda: {"redness": 1.0})

    def __call__(self, samples, prompts):
        return RewardBatch({"redness": self.gain * samples[:, 0].mean(dim=(1, 2))})
'''
COMPOSITE = "target: rewards.CompositeReward\nrewards:\n  - target: rewards.Brightness\n  - {target: 'mine/red.py:Redness', gain: 2.0}\n"
RED = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "configs" / "mine").mkdir(parents=True)
    (tmp_path / "configs" / "mine" / "red.py").write_text(REWARD, encoding="utf-8")
    (tmp_path / "configs" / "reward.yaml").write_text(COMPOSITE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "site" / "our_rewards_of_a_test"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "colour.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield "our_rewards_of_a_test.colour"
    for name in [name for name in sys.modules if name.startswith("our_rewards_of_a_test")]:
        del sys.modules[name]


def test_a_relative_file_lies_in_the_configs_folder_and_its_full_path_is_recorded(project, monkeypatch):
    reward = instantiate(load_config(project / "configs" / "reward.yaml"))
    assert isinstance(reward, CompositeReward)
    assert reward(RED, ["red"]).parts["redness"].item() == 2.0
    recorded = describe(reward)
    assert recorded["rewards"][1]["target"] == f"{project / 'configs' / 'mine' / 'red.py'}:Redness"
    monkeypatch.chdir("/")
    assert instantiate(recorded) == reward


def test_a_file_that_is_not_beside_the_config_is_looked_for_in_the_working_directory(project, monkeypatch):
    monkeypatch.chdir(project)
    (project / "mine").mkdir()
    (project / "mine" / "other.py").write_text(REWARD.replace('"redness"', '"other"'), encoding="utf-8")
    (project / "mine" / "red.py").write_text("raise ValueError('the one beside the config goes first')", encoding="utf-8")
    config = load_config("configs/reward.yaml", ["rewards.0.target=mine/other.py:Redness", "rewards.0.gain=0.5"])
    assert config["rewards"][0] == {"target": f"{project / 'mine' / 'other.py'}:Redness", "gain": 0.5}
    assert list(instantiate(config).weights) == ["other", "redness"]


def test_a_target_may_be_put_together_by_interpolation(project):
    text = COMPOSITE.replace("'mine/red.py:Redness'", "'${vars.file}:Redness'")
    nested = "vars: {file: mine/red.py}\nreward:\n  " + text.replace("\n", "\n  ")
    (project / "configs" / "reward.yaml").write_text(nested, encoding="utf-8")
    config = load_config(project / "configs" / "reward.yaml")
    assert user_targets(config) == [f"{project / 'configs' / 'mine' / 'red.py'}:Redness"]


def test_a_class_of_an_installed_package_is_recorded_by_its_module(package):
    reward = instantiate({"target": f"{package}:Redness", "gain": 3})
    assert reward(RED, ["red"]).parts["redness"].item() == 3.0
    assert describe(reward) == {"target": f"{package}:Redness", "gain": 3.0, "weights": {"redness": 1.0}}


def test_a_file_is_loaded_once_so_that_its_classes_stay_the_same(project):
    first, second = (instantiate(load_config(project / "configs" / "reward.yaml")) for _ in range(2))
    assert first == second
    assert type(first.rewards[1]) is type(second.rewards[1])


def test_a_class_of_the_script_that_runs_is_recorded_by_its_file(monkeypatch, project):
    main_module = type(sys)("__main__")
    main_module.__file__ = str(project / "configs" / "mine" / "red.py")
    monkeypatch.setitem(sys.modules, "__main__", main_module)
    kind = type("Redness", (), {"__module__": "__main__"})
    assert describe(kind()) == {"target": f"{main_module.__file__}:Redness"}


def test_a_config_for_data_may_not_name_code(project):
    with pytest.raises(ConfigError, match=r"card: 'os:PathLike' is outside the packages of flowrl; a file of weights may not run code"):
        instantiate_data({"reward": [{"target": "os:PathLike"}]}, "card")
    assert instantiate_data({"target": "flowrl.flow.CPS", "noise_level": 0.5}).noise_level == 0.5


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (REWARD, "red.py:Rednes", r"'Rednes' does not exist in .*red\.py; did you mean 'Redness'\?"),
        (REWARD, "red.py:field", r"'field' is not a class in .*red\.py; allowed: Redness"),
        (REWARD, "red.py:", r"'.*red\.py:' must read package\.module:Class or file\.py:Class"),
        (REWARD, "blue.py:Redness", r"there is no file .*blue\.py; a relative file is looked for in the config's folder .*say where it is"),
        ("import no_such_module_at_all", "red.py:A", r"ModuleNotFoundError: .*red\.py, line 1\); a file is loaded alone"),
        ("x = 1\ny = 1 / 0", "red.py:A", r"red\.py cannot be imported: ZeroDivisionError: division by zero \(.*red\.py, line 2\)"),
        ("def", "red.py:A", r"red\.py cannot be imported: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)", "red.py:A", r"SystemExit: 3 .*under if __name__ == '__main__':"),
        ("class A:\n    def __init__(self, x=1): ...", "red.py:A", "A takes arguments but is no dataclass"),
        (REWARD, "builtins:int", "int takes arguments but is no dataclass"),
        (REWARD, "no_such_package_at_all.x:A", "there is no module 'no_such_package_at_all'; install its package .*or name the file"),
        (REWARD, "flowrl.flow:CPSS", "'CPSS' does not exist in flowrl.flow"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_its_place(source, target, message, tmp_path):
    (tmp_path / "red.py").write_text(source, encoding="utf-8")
    named = f"{tmp_path}/{target}" if ".py" in target else target
    with pytest.raises(ConfigError, match=rf"config\.reward\.target: .*{message}"):
        instantiate({"reward": {"target": named}})


def test_a_module_that_fails_itself_is_told_apart_from_one_that_is_not_there(package):
    path = Path(sys.path[0]) / "our_rewards_of_a_test" / "broken.py"
    path.write_text("import nothing_of_this_name", encoding="utf-8")
    (problem,) = validate({"target": "our_rewards_of_a_test.broken:A"})
    assert "importing our_rewards_of_a_test.broken failed: ModuleNotFoundError: No module named 'nothing_of_this_name'" in problem
    assert "broken.py, line 1" in problem


@pytest.mark.slow
def test_a_run_with_a_reward_of_the_users_own_resumes_and_is_evaluated_from_elsewhere(project, monkeypatch):
    monkeypatch.chdir(project)
    overrides = ["reward={target: configs/mine/red.py:Redness, gain: 2.0}", f"run_dir={project / 'run'}"]
    assert main(["train", "smoke/digits_g2rpo", *overrides, "updates=1"]) == 0
    monkeypatch.chdir("/")
    assert load_config(project / "run" / "config.yaml")["reward"]["target"] == f"{project / 'configs' / 'mine' / 'red.py'}:Redness"
    assert main(["train", str(project / "run"), "--resume", "updates=2"]) == 0
    assert main(["evaluate", str(project / "run"), "--images-per-prompt", "2"]) == 0
