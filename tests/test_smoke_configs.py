"""Every smoke config of RL trains two updates, resumes, and trains two more."""

import json

import pytest

from flowrl.config import bundled_configs, instantiate, load_config

SMOKE = [name for name in bundled_configs() if name.startswith("smoke/") and load_config(name)["target"] == "flowrl.train.RLTrainer"]


@pytest.mark.parametrize("name", SMOKE)
def test_a_smoke_config_trains_resumes_and_trains_on(name, tmp_path):
    place = f"run_dir={tmp_path}/run"
    instantiate(load_config(name, [place, "updates=2"])).run()
    summary = instantiate(load_config(name, [place, "updates=4"])).run(resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["update"] for line in lines if line["kind"] == "train"] == [0, 1, 2, 3]
    assert [line["update"] for line in lines if line["kind"] == "eval"] == [0, 2, 4]
    assert summary.checkpoint.name == "update_000004"


def test_there_is_one():
    assert SMOKE == ["smoke/digits_g2rpo"]
