"""Small trainings of a gate on the closed form, importable beside this file."""

import json

from flowrl.train import AdamW
from robot import NoiseGateConfig
from robot.gating import GateTraining, OutcomeReward
from robot.gating.toy import TwoModes
from robot.gating.toy_task import TwoModesTask

GRADED = OutcomeReward(success=0.0, max_reward=1.0)
SMALL = NoiseGateConfig(steps=3, width=8, layers=1, heads=2)


def job(run_dir, **settings):
    """Two groups of four, a small network, no evaluation."""
    given = {
        "model": TwoModes(),
        "env": TwoModesTask(),
        "gate": SMALL,
        "seeds": "0:100",
        "groups": 2,
        "group_size": 4,
        "updates": 4,
        "epochs": 2,
        "reward": GRADED,
        "optimizer": AdamW(lr=3.0e-3, weight_decay=0.0),
        "evaluation_seeds": None,
        "rows": 8,
        "seed": 1,
    }
    return GateTraining(run_dir=str(run_dir), **(given | settings))


def lines(run_dir, kind="train"):
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line["kind"] == kind]
