"""``flowrl doctor --rewards``: what is broken about rewards is said before a run."""

import pytest
import yaml

from flowrl.cli.doctor_rewards import named_rewards, reward_problems
from flowrl.cli.main import main
from flowrl.config import instantiate, load_config

BROKEN = """
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from flowrl.errors import RewardError
from flowrl.rl import RewardBatch


@dataclass(frozen=True, kw_only=True)
class Zero:
    weights: Mapping[str, float] = field(default_factory=lambda: {"zero": 1.0})

    def __call__(self, samples, prompts):
        return RewardBatch({"zero": torch.zeros(len(samples))})


@dataclass(frozen=True, kw_only=True)
class Gone(Zero):
    def check(self):
        raise RewardError("the server at 127.0.0.1:1 is gone")


@dataclass(frozen=True, kw_only=True)
class Picky(Zero):
    def __call__(self, samples, prompts):
        raise ValueError("needs a number")


@dataclass(frozen=True, kw_only=True)
class Facts(Zero):
    def __call__(self, samples, prompts):
        return RewardBatch({"zero": torch.tensor([prompt.facts["colour"] for prompt in prompts])})


@dataclass(frozen=True, kw_only=True)
class BadCheck(Zero):
    def check(self):
        return {}["port"]


@dataclass(frozen=True, kw_only=True)
class BadPrompts(Zero):
    def check_prompts(self, prompts):
        return {}["seed"]


@dataclass(frozen=True, kw_only=True)
class BadTest(Zero):
    def self_test(self):
        return {}["answer"]
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "mine.py").write_text(BROKEN, encoding="utf-8")

    def write(**config):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return str(tmp_path / "run.yaml")

    write.folder = tmp_path
    return write


def test_without_a_config_the_rewards_that_need_no_weights_are_tested(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # OCR has its own tests, and takes seconds
    assert reward_problems(None, []) == []
    told = capsys.readouterr().out
    for name in ("Brightness", "JpegCompressibility", "Legibility", "HeldoutLegibility", "Diversity"):
        assert f"  {name:<20} passes: " in told
    assert "OCRAccuracy" not in told


def test_the_rewards_of_a_run_are_found_and_one_that_comes_twice_is_tested_once(capsys):
    assert reward_problems("smoke/digits_g2rpo", []) == []
    told = capsys.readouterr().out
    assert told.count("  Legibility           passes: scans of digits 180 of 180") == 1
    trainer = instantiate(load_config("image/digits_g2rpo"))
    assert [name for name, _ in named_rewards(trainer, "")] == ["reward", "evaluation.rewards.0", "evaluation.rewards.1"]


def test_a_reward_of_the_users_own_that_returns_zeros_is_a_problem(project, capsys):
    config = project(target="rewards.CompositeReward", rewards=[{"target": "rewards.Brightness"}, {"target": "mine.py:Zero"}])
    (problem,) = reward_problems(config, [])
    assert problem.startswith("reward: Zero: every score is 0, whatever the picture and the prompt")
    told = capsys.readouterr().out
    assert "mine.py:Zero" in told.partition("runs code of")[2].partition("\n")[0]
    assert "  Brightness           passes" in told
    assert "  Zero                 fails" in told


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("BadCheck", "its check() raised KeyError: 'port'"),
        ("BadPrompts", "config.reward: check_prompts raised KeyError: 'seed'"),
        ("BadTest", "BadTest cannot score: KeyError: 'answer'"),
        ("Facts", None),
    ],
)
def test_a_reward_that_raises_anything_does_not_hide_what_the_others_say(name, problem, project, capsys):
    overrides = [f"reward={{target: {project.folder}/mine.py:{name}}}"]
    found = reward_problems("smoke/digits_g2rpo", overrides)
    told = capsys.readouterr().out
    assert "  Legibility           passes" in told
    assert "  HeldoutLegibility    passes" in told
    if problem is None:
        assert found == []
        assert "  Facts                not tested: it has no known_answers(), and the photographs and their prompts gave" in told
    else:
        assert problem in found[0]


def test_a_reward_that_is_out_of_reach_is_a_problem(project):
    (problem,) = reward_problems(project(target="mine.py:Gone"), [])
    assert problem == "reward: the server at 127.0.0.1:1 is gone"


def test_a_reward_that_cannot_be_tested_says_so_and_is_no_problem(project, capsys):
    assert reward_problems(project(target="mine.py:Picky"), []) == []
    assert "not tested: it has no known_answers()" in capsys.readouterr().out


def test_prompts_that_a_reward_will_refuse_are_found_before_the_run(tmp_path):
    (tmp_path / "prompts.txt").write_text("a handwritten two\na handwritten cat\n", encoding="utf-8")
    (problem,) = reward_problems("smoke/digits_g2rpo", [f"prompts={tmp_path / 'prompts.txt'}", "evaluation=null"])
    assert problem.startswith("config.reward: a digit reward needs prompts that name exactly one digit in words")
    assert "'a handwritten cat' names none" in problem


def test_a_config_with_errors_is_left_to_the_rows_about_the_config(project, capsys):
    assert reward_problems(project(target="rewards.Brightnes"), []) == []
    assert reward_problems("no_such_config_at_all", []) == []
    assert capsys.readouterr().out.count("not tested: the config has to be mended first") == 2


def test_the_command_ends_with_what_is_to_mend(project, capsys):
    assert main(["doctor", project(target="mine.py:Zero"), "--rewards"]) == 2
    assert "problem: reward: Zero: every score is 0" in capsys.readouterr().out
    assert main(["doctor", project(target="rewards.Brightness"), "--rewards"]) == 0
