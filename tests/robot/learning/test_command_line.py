"""``flowrl train`` runs behaviour cloning: alone, by accelerate's launcher, and as two processes that make one run."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from flowrl.cli.main import main
from flowrl.train.metrics import read_metrics

CONFIG = "smoke/robot_bc_diffusion"
SMALL = ["steps=4", "batch_size=16", "name=p"]


def launched(launcher, run_dir, config=CONFIG):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("ACCELERATE_USE_CPU", None)  # as a user on a CPU has it
    line = [sys.executable, *launcher, "-m", "flowrl.cli.train", config, *SMALL, f"run_dir={run_dir}"]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def test_training_ends_with_what_was_measured_and_where_everything_is(tmp_path, capsys):
    assert main(["train", CONFIG, *SMALL, f"run_dir={tmp_path / 'run'}"]) == 0
    told = capsys.readouterr().out
    for name in ("loss", "action error", "report.html", "policy.safetensors"):
        assert name in told
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "run" / "report.html").unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [CONFIG, "encoder.cameras=[front]"],
            "needs the sensor 'front', which the demonstrations do not have; allowed: keypoints, picture, state",
        ),
        ([CONFIG, "network.layers=0"], "config.network: ActionTransformer.layers must be at least 1, got 0"),
        ([CONFIG, "process.schedule=cosine"], "config.process.schedule: Diffusion expects Literal"),
        ([CONFIG, "process.schedule=linear"], "ends at alpha_bar = 0.364"),
        (["robot/record_toy"], "describes a Recording, not a flowrl.train.RLTrainer; run it with flowrl record"),
        (["robot/rollout_toy"], "describes a Rollout, not a flowrl.train.RLTrainer; run it with flowrl rollout"),
        (["smoke/robot_compose_toy"], "describes a WeightSearch, not a flowrl.train.RLTrainer; run it with flowrl compose search"),
        (["image/digits_pretrain"], "describes a Pretrain, not a flowrl.train.RLTrainer; run it with flowrl pretrain"),
    ],
)
def test_what_a_user_can_mend_is_one_message(arguments, message, tmp_path, capsys):
    place = [] if "record" in arguments[0] else [f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *arguments, *place]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_so_does_accelerates_launcher(tmp_path):
    """Losses are equal to 1e-6 and weights to 1e-5: the gradient is a mean of two means instead of one mean."""
    assert main(["train", CONFIG, *SMALL, f"run_dir={tmp_path / 'one'}"]) == 0
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    accelerate = (
        "-m",
        "accelerate.commands.launch",
        "--num_processes=1",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
    )
    for name, launcher in (("two", torchrun), ("launched", accelerate)):
        done = launched(launcher, tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(str(tmp_path / name / "policy.safetensors")) == 1
        one, other = (list(read_metrics(tmp_path / run / "metrics.jsonl")) for run in ("one", name))
        assert [line["update"] for line in other] == [line["update"] for line in one]
        for field in ("loss", "grad_norm"):
            assert [line[field] for line in other if field in line] == pytest.approx(
                [line[field] for line in one if field in line], rel=1e-5
            )
        mine, theirs = (load_file(tmp_path / run / "policy.safetensors") for run in ("one", name))
        for tensor in mine:
            torch.testing.assert_close(theirs[tensor], mine[tensor], rtol=0, atol=2e-5 if name == "two" else 0)


@pytest.mark.slow
def test_two_processes_train_the_world_action_model_that_one_trains(tmp_path):
    config = "smoke/robot_wam"
    assert main(["train", config, *SMALL, f"run_dir={tmp_path / 'one'}"]) == 0
    done = launched(("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"), tmp_path / "two", config)
    assert done.returncode == 0, done.stderr
    one, two = (list(read_metrics(tmp_path / run / "metrics.jsonl")) for run in ("one", "two"))
    for field in ("loss", "grad_norm", "eval/loss", "eval/action_error", "eval/frame_error"):
        assert [line[field] for line in two if field in line] == pytest.approx([line[field] for line in one if field in line], rel=1e-4)
    mine, theirs = (load_file(tmp_path / run / "world_action.safetensors") for run in ("one", "two"))
    for tensor in mine:
        torch.testing.assert_close(theirs[tensor], mine[tensor], rtol=0, atol=2e-5)
