"""``flowrl compose``."""

import json

import pytest

from flowrl.cli.main import main
from robot.search import arena

SMOKE = "smoke/robot_compose_toy"


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)


def test_search_prints_the_choice_and_the_held_out_success_side_by_side(tmp_path, capsys):
    assert main(["compose", "search", SMOKE, f"run_dir={tmp_path}/run"]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    label = ", ".join(f"{weight:g}" for weight in results["weights"])
    assert f"{label} (chosen)" in printed
    for title in ("strong alone", "weak alone", "equal weights", "actions averaged", "SDE sampler", "McNemar", "Holm"):
        assert title in printed
    assert "seeds that had no part in choosing it" in printed
    assert "so that figure is no result" in printed
    assert str(tmp_path / "run" / "report.html") in printed


def test_eval_of_a_searchs_config_takes_its_weights_and_writes_beside_it(tmp_path, capsys):
    weights = ["composition.members.0.weight=0.75", "composition.members.1.weight=0.25"]
    assert main(["compose", "eval", SMOKE, f"run_dir={tmp_path}/run", *weights, "--seeds", "5:15"]) == 0
    results = json.loads((tmp_path / "run" / "fixed" / "results.json").read_text())
    assert results["weights"] == [0.75, 0.25]
    assert results["report_seeds"] == 10
    assert results["selection"] is None
    assert "composed, 0.75, 0.25" in capsys.readouterr().out


def test_a_search_that_is_stopped_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    place = f"run_dir={tmp_path}/run"
    with monkeypatch.context() as patch:
        patch.setattr(arena, "run_episodes", stop)
        assert main(["compose", "search", SMOKE, place]) == 130
    assert f"flowrl compose search {SMOKE} {place} --resume" in capsys.readouterr().out
    assert main(["compose", "search", SMOKE, place, "--resume"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", SMOKE, "--seeds", "0:5"], "two sets of seeds"),
        (["search", SMOKE, "report_seeds=5:200"], "both hold 5, 6, 7, 8, 9 and 2 more"),
        (["search", SMOKE, "step=0.3"], "must divide 1, got 0.3"),
        (["search", "smoke/robot_rollout_toy"], "describes a Rollout, not a robot.search.WeightSearch"),
        (["eval", SMOKE, "--seeds", "9:2"], "is empty"),
        (["eval", SMOKE, "composition.members.0.weight=0.9"], "sum to one"),
        (["search", SMOKE, "race.batch=0"], "config.race: a race needs batch >= 1"),
    ],
)
def test_what_the_user_can_mend_is_one_message(arguments, message, tmp_path, capsys):
    assert main(["compose", *arguments, f"run_dir={tmp_path}/run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
