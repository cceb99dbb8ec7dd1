"""Train, resume, evaluate, sample and report on the embedded model, through the command line."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from scipy import stats

from flowrl.cli import sample
from flowrl.cli.console import load_trainer
from flowrl.cli.main import main
from flowrl.cli.processes import Processes
from flowrl.rl import Prompt, facts_of

pytestmark = pytest.mark.slow

SMALL = [
    "prompts_per_update=2",
    "sampler.group_size=4",
    "sampler.sde_indices=[0,1]",
    "sampler.grid.steps=4",
    "evaluation.sampler.grid.steps=4",
    "evaluation.images_per_prompt=2",
    "evaluation.keep=10",
    "evaluate_every=2",
    "checkpoint_every=2",
]
CONFIG = "image/digits_g2rpo"


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A run of four updates, and what it printed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    command = [sys.executable, "-m", "flowrl.cli.train", CONFIG, *SMALL, "updates=4", f"run_dir={folder}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return folder, done.stdout


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def test_training_ends_with_a_table_and_the_paths_of_what_it_made(finished):
    folder, printed = finished
    for name in ("legibility", "held-out accuracy", "diversity", "trained", "held out"):
        assert name in printed
    for name in ("report.html", "grids/before_after.png", "checkpoints/update_000004"):
        assert str(folder / name) in printed
        assert (folder / name).exists()


def test_the_table_shows_the_metrics(finished):
    folder, printed = finished
    evals = [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "eval"]
    assert [line["update"] for line in evals] == [0, 2, 4]
    row = next(line.split() for line in printed.splitlines() if line.split()[:1] == ["legibility"])
    assert [float(text.replace("−", "-")) for text in row[2:4]] == pytest.approx(
        [evals[place]["eval/legibility"] for place in (0, -1)], rel=5e-3
    )


def test_two_processes_make_one_run_with_the_same_scores(finished, tmp_path):
    folder = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "flowrl.cli.train"]
    done = subprocess.run([*launch, CONFIG, *SMALL, "updates=4", f"run_dir={folder}"], check=True, capture_output=True, text=True)
    assert done.stdout.count(str(folder / "report.html")) == 1
    one, two = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (finished[0], folder))
    assert [(line["kind"], line["update"]) for line in two] == [(line["kind"], line["update"]) for line in one]
    for name in ("eval/legibility", "eval/heldout_probability", "diversity"):
        assert two[-1][name] == pytest.approx(one[-1][name], rel=1e-3)


def test_a_run_is_not_overwritten(run, capsys):
    assert main(["train", str(run / "config.yaml"), f"run_dir={run}"]) == 2
    assert "already holds a run; go on with --resume" in capsys.readouterr().err


def test_a_finished_run_goes_on_with_more_updates(run, capsys):
    assert main(["train", str(run / "config.yaml"), f"run_dir={run}", "updates=5", "--resume"]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if line["kind"] == "train"] == [0, 1, 2, 3, 4]
    assert "checkpoints/update_000005" in capsys.readouterr().out


def scores(folder: Path) -> dict[str, list[float]]:
    return json.loads((folder / "scores.json").read_text())["scores"]


def test_evaluate_compares_the_checkpoint_with_the_base_on_the_same_noise(run, capsys):
    assert main(["evaluate", str(run), "--images-per-prompt", "3", "--seed", "11"]) == 0
    out = run / "comparisons" / "update_000004"
    results = json.loads((out / "results.json").read_text())
    assert (results["images"], results["seed"]) == (results["prompts"] * 3, 11)
    before, after = scores(out / "base"), scores(out / "update_000004")
    for row in results["against_base"]["update_000004"][:3]:
        pairs = np.subtract(after[row["name"]], before[row["name"]])
        assert row["difference"] == pytest.approx(pairs.mean())
        assert row["ci95"] == pytest.approx(stats.sem(pairs) * stats.t.ppf(0.975, len(pairs) - 1))
    assert before["legibility"] != after["legibility"]
    assert picture(out / "base_update_000004.png").shape[1] > 500
    assert str(out / "results.json") in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "held-out accuracy" in page


def test_evaluating_with_the_runs_own_settings_gives_the_runs_own_scores(run):
    """The run's own evaluations are a second route to both sides: before any update, and after the last."""
    assert main(["evaluate", str(run), "--checkpoint", "2", "--checkpoint", "4", "--out", str(run / "out")]) == 0
    for side, update in (("base", 0), ("update_000002", 2), ("update_000004", 4)):
        own, again = scores(run / "evaluations" / f"update_{update:06d}"), scores(run / "out" / side)
        for name in own:
            assert again[name] == pytest.approx(own[name], abs=1e-4)


def test_a_config_alone_is_evaluated_as_the_base_is(run, tmp_path, capsys):
    rewards = tmp_path / "rewards.yaml"
    rewards.write_text("rewards:\n  - target: rewards.Brightness\n", encoding="utf-8")
    changes = ["--limit", "3", "--rewards", str(rewards), "--out", str(tmp_path / "out")]
    assert main(["evaluate", CONFIG, *SMALL, *changes]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (found["prompts"], found["images"], found["against_base"]) == (3, 6, {})
    assert found["models"]["base"]["eval/brightness"] == pytest.approx(np.mean(scores(tmp_path / "out" / "base")["brightness"]))
    assert "the base alone" in capsys.readouterr().out


def test_a_stopped_evaluation_goes_on_and_ends_as_the_uninterrupted_one(run, monkeypatch):
    """Stopped after the first block of the checkpoint: what was drawn is not drawn again, and every score is the same."""
    from flowrl.train import Evaluation

    assert main(["evaluate", str(run), "evaluation.batch=4", "--out", str(run / "whole")]) == 0
    drawn, block = [], Evaluation.block

    def stopping(self, model, index, **arguments):
        drawn.append(index)
        if len(drawn) == 7:  # five blocks of four pictures of the base come first
            raise KeyboardInterrupt
        return block(self, model, index, **arguments)

    monkeypatch.setattr(Evaluation, "block", stopping)
    command = ["evaluate", str(run), "evaluation.batch=4", "--out", str(run / "stopped")]
    assert main(command) == 130
    assert not (run / "stopped" / "results.json").exists()
    assert main(command) == 0
    assert len(drawn) == 11
    assert drawn[6] == drawn[7]
    assert main(command) == 0
    assert len(drawn) == 11
    for side in ("base", "update_000004"):
        assert scores(run / "stopped" / side) == scores(run / "whole" / side)
    one, other = (json.loads((run / folder / "results.json").read_text()) for folder in ("whole", "stopped"))
    assert one == other


def test_another_evaluation_in_the_same_folder_is_refused_unless_it_is_started_anew(run, capsys):
    command = ["evaluate", str(run), "--limit", "2", "--out", str(run / "out")]
    assert main(command) == 0
    assert main([*command, "--seed", "5"]) == 2
    assert "holds an evaluation with another evaluation; choose another folder with --out, or start it anew" in capsys.readouterr().err
    assert main([*command, "--seed", "5", "--restart"]) == 0
    assert json.loads((run / "out" / "results.json").read_text())["seed"] == 5


def test_two_processes_share_an_evaluation_and_agree_with_one(run):
    assert main(["evaluate", str(run), "evaluation.batch=4", "--out", str(run / "one")]) == 0
    command = ["evaluate", str(run), "evaluation.batch=4", "--out", str(run / "two")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "flowrl.cli.main", *command],
            env=os.environ
            | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert json.loads((run / "one" / "results.json").read_text()) == json.loads((run / "two" / "results.json").read_text())


def test_checkpoints_of_two_runs_with_the_same_name_are_told_apart(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    older, newer = (other / "checkpoints" / f"update_{update:06d}" for update in (2, 4))
    shutil.copytree(older / "weights", newer / "weights", dirs_exist_ok=True)  # so that the two differ
    files = [str(folder / "checkpoints" / "update_000004") for folder in (run, other)]
    command = ["evaluate", str(run), "--limit", "1", "--images-per-prompt", "2", "--out", str(tmp_path / "out")]
    assert main([*command, "--checkpoint", files[0], "--checkpoint", files[1], "--checkpoint", files[0]]) == 0
    scores = {path.parent.name: path.read_text() for path in (tmp_path / "out").glob("*/scores.json")}
    assert set(scores) == {"base", f"{run.name}_update_000004", "other_update_000004"}
    assert len(set(scores.values())) == 3


def test_processes_wait_longer_for_each_other_than_a_block_of_pictures_takes(monkeypatch):
    asked = {}

    class State:
        num_processes, process_index, device = 2, 1, "cpu"

        def __init__(self, **given):
            asked.update(given)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", State)
    assert Processes().rank == 1
    assert asked["timeout"] >= timedelta(hours=24)


def test_scores_are_told_apart_by_category(run, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    lines = [("seven", "odd"), ("two", "even"), ("four", "even")]
    prompts.write_text("\n".join(json.dumps({"prompt": text, "category": kind}) for text, kind in lines), encoding="utf-8")
    assert main(["evaluate", str(run), "--prompts", str(prompts), "--out", str(run / "out")]) == 0
    found = json.loads((run / "out" / "results.json").read_text())["categories"]
    base, tuned = scores(run / "out" / "base")["legibility"], scores(run / "out" / "update_000004")["legibility"]
    even = [1, 2, 4, 5]  # picture i shows prompt i mod 3
    assert found["even"]["legibility"]["base"]["mean"] == pytest.approx(np.mean([base[i] for i in even]))
    change = found["even"]["legibility"]["update_000004"]["change"]
    assert change == pytest.approx(np.mean([tuned[i] - base[i] for i in even]))


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("3", "holds no update_000003, only update_000002 and update_000004; give one of these"),
        ("elsewhere", "elsewhere is not a checkpoint"),
    ],
)
def test_a_missing_checkpoint_is_refused_before_the_model_is_loaded(run, checkpoint, message, capsys):
    assert main(["evaluate", str(run), "--checkpoint", checkpoint]) == 2
    assert message in capsys.readouterr().err


def test_a_truncated_checkpoint_is_refused(run, capsys):
    weights = next((run / "checkpoints" / "update_000004").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    assert main(["evaluate", str(run), "--checkpoint", "4"]) == 2
    assert "damaged" in capsys.readouterr().err


def test_samples_of_a_run_are_those_of_its_checkpoint_and_of_a_config_those_of_the_base(run, tmp_path, capsys):
    grids = [tmp_path / "tuned.png", tmp_path / "older.png", tmp_path / "base.png"]
    prompts = ["--prompt", "seven", "--prompt", "two", "--images", "2"]
    assert main(["sample", str(run), *prompts, "--out", str(grids[0])]) == 0
    assert main(["sample", str(run), "--checkpoint", "2", *prompts, "--out", str(grids[1])]) == 0
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "seven"}\n{"prompt": "two", "style": "thin"}', encoding="utf-8")
    from_file = ["--prompts", str(tmp_path / "prompts.jsonl"), "--images", "2"]
    assert main(["sample", CONFIG, *from_file, "--out", str(grids[2])]) == 0
    assert capsys.readouterr().out.split() == [str(grid) for grid in grids]
    pictures = [picture(grid) for grid in grids]
    assert pictures[0].shape[1] == 20 + 4 * (112 + 20)  # two prompts, two pictures each
    assert any(not np.array_equal(pictures[0], other) for other in pictures[1:])


def test_a_prompt_of_the_run_is_sampled_with_its_facts(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "seven", "count": 7}\n', encoding="utf-8")
    trainer, _ = load_trainer(CONFIG, [f"prompts={tmp_path}/prompts.jsonl"])
    known, unknown = sample._prompts(trainer, trainer.evaluation, SimpleNamespace(prompt=["seven", "a new one"], prompts=None))
    assert (known, facts_of(known)) == (Prompt("seven", facts={"count": 7}), {"count": 7})
    assert unknown == "a new one"


def test_ctrl_c_checkpoints_and_shows_the_command_that_goes_on(tmp_path):
    folder = tmp_path / "run"
    command = [CONFIG, *SMALL, "updates=500", "evaluate_every=1000", f"run_dir={folder}"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "flowrl.cli.train", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and '"kind": "train"' not in _read(folder / "metrics.jsonl"):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Go on with: flowrl train" in printed
    assert "--resume" in printed
    assert "Traceback" not in errors
    assert list((folder / "checkpoints").glob("update_*"))


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
