"""Every smoke config of training trains two updates, resumes, and trains two more."""

import json

import pytest

from flowrl.config import bundled_configs, instantiate, load_config

TARGETS = {name: load_config(name)["target"] for name in bundled_configs() if name.startswith("smoke/")}
RL = [name for name, target in TARGETS.items() if target == "flowrl.train.RLTrainer"]
CLONING = [name for name, target in TARGETS.items() if target == "robot.learning.BehaviourCloning"]
WORLDS = [name for name, target in TARGETS.items() if target == "robot.world.WorldActionTraining"]


def trained_twice(name, run_dir, field):
    """Two updates, then two more; the summary of the second, and the lines of metrics."""
    place = f"run_dir={run_dir}"
    instantiate(load_config(name, [place, f"{field}=2"])).run()
    summary = instantiate(load_config(name, [place, f"{field}=4"])).run(resume=True)
    return summary, [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", RL)
def test_a_smoke_config_of_rl_trains_resumes_and_trains_on(name, tmp_path):
    summary, lines = trained_twice(name, tmp_path / "run", "updates")
    assert [line["update"] for line in lines if line["kind"] == "train"] == [0, 1, 2, 3]
    assert [line["update"] for line in lines if line["kind"] == "eval"] == [0, 2, 4]
    assert summary.checkpoint.name == "update_000004"


@pytest.mark.parametrize("name", CLONING)
def test_a_smoke_config_of_behaviour_cloning_trains_resumes_and_trains_on(name, tmp_path):
    from robot.learning import load_policy, read_training

    summary, lines = trained_twice(name, tmp_path / "run", "steps")
    assert [line["update"] for line in lines if line["kind"] == "train"] == [0, 1, 2, 3]
    assert [line["update"] for line in lines if line["kind"] == "eval"] == [2, 4]
    assert read_training(summary.checkpoint)["steps"] == 4
    assert load_policy(summary.checkpoint).horizon == 4


@pytest.mark.parametrize("name", WORLDS)
def test_a_smoke_config_of_a_world_action_model_trains_resumes_and_trains_on(name, tmp_path):
    from robot.world import load_world_action
    from robot.world.checkpoint import WORLD_ACTION_MODELS

    summary, lines = trained_twice(name, tmp_path / "run", "steps")
    assert [line["update"] for line in lines if line["kind"] == "train"] == [0, 1, 2, 3]
    assert [line["update"] for line in lines if line["kind"] == "eval"] == [2, 4]
    assert WORLD_ACTION_MODELS.read_training(summary.checkpoint)["steps"] == 4
    assert load_world_action(summary.checkpoint).horizon == 4


def test_there_are_some():
    assert RL == ["smoke/digits_g2rpo"]
    assert CLONING == ["smoke/robot_bc_diffusion", "smoke/robot_bc_flow"]
    assert WORLDS == ["smoke/robot_wam"]
