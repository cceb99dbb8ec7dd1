"""The first updates on demonstrations: a reward without a simulator."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from flowrl.errors import ConfigError
from flowrl.shapes import seeded_generator
from flowrl.train import AdamW
from robot import ConstantGate, ConstantGateConfig, WorldActionFile
from robot.demonstrations.data import Demonstrations, Episode
from robot.gating import ActionErrorWarmUp, GateTraining
from robot.gating.noise import ExplorationNoise
from robot.gating.proxy import HeldOut
from robot.gating.rollouts import Explorer
from robot.gating.toy import TOY_ACTION, TwoModes
from robot.gating.toy_task import TwoModesTask
from robot.types import ActionSpec, Observation
from robot.world import Tasks


@dataclass(frozen=True, kw_only=True)
class Ups:
    """Twenty episodes of three control steps; the action of step ``s`` in episode ``e`` is ``base + e + s / 10``."""

    base: int = 0
    sensor: str = "place"
    action: ActionSpec = TOY_ACTION

    def load(self):
        episodes = [
            Episode(
                observations={self.sensor: np.zeros((3, 1), np.float32)},
                actions=np.array([[self.base + number + step / 10] for step in range(3)], np.float32),
                rewards=np.zeros(3, np.float32),
                dones=np.array([False, False, True]),
                success=True,
                seed=number,
            )
            for number in range(20)
        ]
        return Demonstrations(episodes=tuple(episodes), action=self.action, env={})


def warm_up(**settings):
    return ActionErrorWarmUp(**({"demonstrations": Ups(), "updates": 2, "chunks": 6, "held_out": 0.3} | settings))


def test_only_episodes_that_were_held_out_are_used():
    windows = warm_up().load(TwoModes().load())
    assert len(windows) == 18  # 6 of 20 episodes, three control steps each
    held_out = {int(action) for action in windows.actions[:, 0]}
    other = {int(action) for action in warm_up(split_seed=1).load(TwoModes().load()).actions[:, 0]}
    assert len(held_out) == len(other) == 6
    assert held_out != other


@pytest.mark.parametrize("task", ["up", "down"])
def test_of_several_tasks_only_that_of_the_model_is_imitated(task):
    both = warm_up(demonstrations=Tasks(tasks={"up": Ups(), "down": Ups(base=100)}))
    model = replace(TwoModes().load(), tasks=("up", "down"), task=task)
    assert {bool(action >= 100) for action in both.load(model).actions[:, 0]} == {task == "down"}


def test_the_reward_of_a_chunk_is_minus_its_distance_from_the_demonstrated_action():
    model, still = TwoModes().load(), ConstantGate(3, steps=3, log_std=-5.0)
    explorer = Explorer(model=model, gate=still, noise=ExplorationNoise(seed=0, update=4, steps=3, columns=3))
    held_out = HeldOut(warm_up(), model, seed=2, rows=5)
    scores = held_out.play(explorer, 4, 2)
    keys, record = explorer.recorded()
    assert len(record) == len(keys) == 12
    assert (scores.group_size, scores.weights) == (2, {"action": 1.0})
    windows = warm_up().load(model)
    for slot in range(6):
        row = keys[2 * slot].seed
        assert keys[2 * slot + 1].seed == row
        base = model.act(Observation({"place": torch.zeros(1, 1, 1)}), [seeded_generator(2, 17, 4, slot)]).values[0, 0]
        error = float((base - windows.chunks(torch.tensor([row]))[0, 0]).abs())  # of one number
        assert scores.totals[slot].tolist() == pytest.approx([-error, -error], abs=0.05)  # the gate barely moves


def test_a_run_warms_up_first_and_then_rolls_out(tmp_path):
    job = GateTraining(
        run_dir=str(tmp_path / "run"),
        model=TwoModes(),
        env=TwoModesTask(),
        gate=ConstantGateConfig(steps=3),
        seeds="0:50",
        groups=2,
        group_size=4,
        updates=2,
        warm_up=warm_up(),
        optimizer=AdamW(lr=0.01),
        evaluation_seeds="100:104",
        evaluate_every=1,
    )
    summary = job.run()
    found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [line for line in found if line["kind"] == "train"]
    assert summary.updates == 4
    assert [line["phase"] for line in train] == ["warm_up", "warm_up", "rollout", "rollout"]
    assert [line["chunks"] for line in train] == [24, 48, 56, 64]
    assert [line["episodes"] for line in train] == [0, 0, 8, 16]
    assert "reward/action" in train[0]
    assert train[0]["trained_chunks"] == 24
    assert [line["update"] for line in found if line["kind"] == "eval"] == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates": 0}, "a warm-up needs updates >= 1"),
        ({"held_out": 0.0}, "held_out in .0, 1."),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        warm_up(**settings)


@pytest.mark.parametrize(
    ("demonstrations", "message"),
    [
        (Ups(sensor="camera"), "lack place, which the model reads"),
        (Ups(action=ActionSpec(names=("height",), control_rate_hz=10)), "act by .'height',., the model by .'position',."),
    ],
)
def test_demonstrations_of_another_kind_are_refused(demonstrations, message):
    with pytest.raises(ConfigError, match=message):
        warm_up(demonstrations=demonstrations).load(TwoModes().load())


def test_another_split_than_the_model_s_is_refused(tmp_path):
    """The shipped model held out a tenth of its episodes with seed 0."""
    model = WorldActionFile(path="assets/robot/wam_pusht.safetensors")
    warm_up(held_out=0.1, split_seed=0).check_split(model)
    with pytest.raises(ConfigError, match=r"validation_share=0\.1 and seed=0; set held_out and split_seed to these instead of 0\.1 and 3"):
        warm_up(held_out=0.1, split_seed=3).check_split(model)
    with pytest.raises(ConfigError, match=r"instead of 0\.2 and 0"):
        warm_up(held_out=0.2, split_seed=0).check_split(model)
