"""Two real processes give what one gives; launchers, signals and refusals work through the command line.

Tolerances, measured on this run of four updates with two optimiser steps of two epochs each: rewards and evaluations 2e-8, losses 3e-8,
weights 7e-6 of 0.17 (AdamW divides by small second moments). The bounds below are about ten times that.
"""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toys import Bright, ToyModel, assert_same_run, count_lines, fork_pair, lines, sde, signal_self, trainer

from flowrl.cli.console import load_trainer
from flowrl.models import LORA_FILE, StableDiffusion3
from flowrl.rl import PPOClip, RewardBatch
from flowrl.train import AdamW, Evaluation
from flowrl.train.checkpoint import check_complete
from samplers import ODESampler

CONFIG = {
    "target": "flowrl.train.RLTrainer",
    "updates": 4,
    "prompts_per_update": 2,
    "model": {"target": "flowrl.models.StableDiffusion3", "max_sequence_length": 0, "decode_batch": 64},
    "sampler": {
        "target": "samplers.SingularStochasticSampler",
        "group_size": 4,
        "sde_indices": [0, 1],
        "grid": {"target": "samplers.ShiftedGrid", "steps": 4},
        "dynamics": {"target": "flowrl.flow.FlowSDE", "noise_level": 0.7},
    },
    "reward": {"target": "rewards.Brightness"},
    "advantage": {"target": "flowrl.rl.MultiGranularityAdvantage"},
    "optimizer": {"target": "flowrl.train.AdamW", "lr": 0.01, "schedule": "constant_with_warmup", "warmup_steps": 10},
    "update": {"target": "flowrl.train.UpdateSettings", "micro_batch": 1, "minibatches": 2, "epochs": 2},
    "evaluation": {
        "target": "flowrl.train.Evaluation",
        "images_per_prompt": 3,
        "sampler": {"target": "samplers.ODESampler", "grid": {"target": "samplers.ShiftedGrid", "steps": 4}},
        "rewards": [{"target": "rewards.Brightness"}],
    },
    "ema_decay": 0.9,
    "evaluate_every": 2,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, pipeline_folder):
    """A folder with a config, and the run of it in one process that nothing interrupted: ``one``."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "prompts.txt").write_text("red\nblue\nred blue\n", encoding="utf-8")  # three: shares of an evaluation differ in size
    prompts = str(folder / "prompts.txt")
    config = CONFIG | {"prompts": prompts, "evaluation": CONFIG["evaluation"] | {"prompts": prompts}, "run_dir": str(folder / "one")}
    config["model"] = CONFIG["model"] | {"path": str(pipeline_folder), "lora": {"target": "flowrl.models.LoRA", "rank": 4, "alpha": 8.0}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    load_trainer(str(folder / "config.yaml"))[0].run()
    return folder


def command(launcher, folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if not torch.cuda.is_available():  # as a user on a CPU has it
        environment.pop("ACCELERATE_USE_CPU", None)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    line = [sys.executable, *launcher, "-m", "flowrl.cli.train", "config.yaml", *arguments]
    return subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")


def assert_close_lines(one, other, tolerance):
    """Lines agree in every number; which numbers are there agrees exactly."""
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for mine, theirs in zip(one, other, strict=True):
        for name, value in mine.items():
            assert theirs[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=tolerance)), name


def assert_close_weights(one, other, update, tolerance):
    for kind in ("weights", "weights_ema"):
        mine, theirs = [load_file(run / "checkpoints" / f"update_{update:06d}" / kind / LORA_FILE) for run in (one, other)]
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_two_processes_started_by_torchrun_and_resumed_give_the_result_of_one(workplace):
    launched = command(TORCHRUN, workplace, "run_dir=two", "updates=2")
    _, errors = launched.communicate(timeout=300)
    assert launched.returncode == 0, errors
    rest, _ = load_trainer(str(workplace / "config.yaml"), [f"run_dir={workplace / 'two'}"])
    resumed = fork_pair(lambda: rest.run(resume=True), workplace)
    assert [child.wait() for child in resumed] == [0, 0], [child.output.read_text() for child in resumed]
    one, two = workplace / "one", workplace / "two"
    assert_close_lines(lines(one, "eval"), lines(two, "eval"), 2e-7)
    assert_close_lines(lines(one), lines(two), 3e-7)
    assert_close_weights(one, two, 4, 7e-5)


@pytest.mark.slow
def test_groups_that_cannot_be_shared_are_refused_by_all_processes_before_the_model_is_loaded(workplace):
    launched = command(TORCHRUN, workplace, "run_dir=odd", "prompts_per_update=3", "model.path=nowhere")
    _, errors = launched.communicate(timeout=300)
    assert launched.returncode != 0
    message = "prompts_per_update = 3 groups of 4 cannot be shared evenly by 2 processes; set prompts_per_update=2 or 4"
    assert errors.count(message) == 2
    assert not (workplace / "odd").exists()


@pytest.mark.slow
def test_accelerate_launch_gives_the_result_of_a_plain_start(workplace):
    launched = command(ACCELERATE, workplace, "run_dir=launched", "updates=4")
    _, errors = launched.communicate(timeout=300)
    assert launched.returncode == 0, errors
    assert_same_run(workplace / "one", workplace / "launched", 4)


@pytest.mark.slow
def test_ctrl_c_checkpoints_exits_with_130_and_tells_how_to_go_on(workplace):
    launched = command((), workplace, "run_dir=stopped")
    while launched.poll() is None and count_lines(workplace / "stopped") < 1:
        time.sleep(0.02)
    launched.send_signal(signal.SIGINT)
    output, errors = launched.communicate(timeout=300)
    assert launched.returncode == 130, errors
    assert "Stopped. Go on with: flowrl train config.yaml run_dir=stopped --resume" in output
    assert "Traceback" not in errors
    assert "Loading" not in errors
    newest = max((workplace / "stopped" / "checkpoints").iterdir())
    assert check_complete(newest) == count_lines(workplace / "stopped") >= 1
    load_trainer(str(workplace / "config.yaml"), [f"run_dir={workplace / 'stopped'}"])[0].run(resume=True)
    assert_same_run(workplace / "one", workplace / "stopped", 4)


# --------------------------------------------------------------------------------------------------- forked processes


def test_all_weights_with_a_kl_to_the_reference_train_alike_in_one_and_two_processes(pipeline_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("red\nblue\n", encoding="utf-8")
    model = StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0)
    fields = {"model": model, "objective": PPOClip(kl_weight=0.1), "updates": 2, "optimizer": AdamW(lr=1e-3)}
    trainer(tmp_path / "one", **fields).run()
    pair = fork_pair(lambda: trainer(tmp_path / "two", **fields).run(), tmp_path)
    assert [child.wait() for child in pair] == [0, 0], [child.output.read_text() for child in pair]
    assert_close_lines(lines(tmp_path / "one"), lines(tmp_path / "two"), 3e-7)


def test_each_process_scores_whole_groups_of_its_own_prompts(tmp_path):
    class Noting(Bright):
        def __call__(self, samples, prompts):
            with (tmp_path / f"prompts{os.environ['RANK']}.txt").open("a") as file:
                file.write(" ".join(prompts) + "\n")
            return super().__call__(samples, prompts)

    run = trainer(tmp_path / "run", reward=Noting(), prompts_per_update=4, updates=1, sampler=sde(group_size=3))
    assert [child.wait() for child in fork_pair(run.run, tmp_path)] == [0, 0]
    seen = [(tmp_path / f"prompts{rank}.txt").read_text().split() for rank in range(2)]
    assert [len(prompts) for prompts in seen] == [6, 6]
    assert all(prompts[first : first + 3] == prompts[first : first + 1] * 3 for prompts in seen for first in (0, 3))
    assert {*seen[0], *seen[1]} == {"0", "1", "2", "3"}


def test_a_signal_to_one_process_stops_both_with_one_checkpoint(tmp_path):
    trainer(tmp_path / "one").run()

    def work():
        if os.environ["RANK"] == "1":
            signal_self(tmp_path / "run", 3, signal.SIGINT)
        trainer(tmp_path / "run").run()

    pair = fork_pair(work, tmp_path)
    assert [child.wait() for child in pair] == [1, 1]
    assert all(child.output.read_text().endswith("Stopped: ") for child in pair)
    assert check_complete(tmp_path / "run" / "checkpoints" / "update_000003") == 3
    trainer(tmp_path / "run").run(resume=True)  # in one process
    assert_close_lines(lines(tmp_path / "one"), lines(tmp_path / "run"), 1e-5)


@dataclass(frozen=True, kw_only=True)
class OnlyThere(PPOClip):
    """A loss that is no number in the second process."""

    def __call__(self, log_ratio, advantage, mask, context=None):
        loss, metrics = super().__call__(log_ratio, advantage, mask, context)
        return loss * (math.nan if os.environ["RANK"] == "1" else 1.0), metrics


@dataclass(frozen=True)
class NoScoreThere(Bright):
    """Likewise a score."""

    def __call__(self, samples, prompts):
        scores = super().__call__(samples, prompts).parts["bright"]
        return RewardBatch({"bright": scores * (math.nan if os.environ["RANK"] == "1" else 1.0)})


EVALUATION = Evaluation(prompts=("0", "1"), sampler=ODESampler(grid=sde().grid), rewards=(NoScoreThere(),))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward": NoScoreThere()}, "reward 'bright' is nan"),
        ({"objective": OnlyThere()}, "optimiser step 0 of this update"),
        ({"evaluation": EVALUATION}, "score 'bright' is nan"),
    ],
    ids=["reward", "loss", "evaluation"],
)
def test_a_number_that_is_none_in_one_process_stops_both(fields, message, tmp_path):
    pair = fork_pair(lambda: trainer(tmp_path / "run", **fields).run(), tmp_path)
    assert [child.wait() for child in pair] == [1, 1]
    for child in pair:
        assert "NonFiniteError: " in child.output.read_text()
        assert message in child.output.read_text()
    assert check_complete(tmp_path / "run" / "checkpoints" / "update_000000") == 0


def test_each_process_tells_its_model_of_the_texts_that_it_will_ask_for_and_no_others(tmp_path):
    """Two processes, one prompt each an update; evaluation prompts are dealt out in turn."""
    from samplers import ODESampler, ShiftedGrid

    def work():
        told, asked = [], set()
        prepare, encode = ToyModel.prepare, ToyModel.encode
        ToyModel.prepare = lambda self, prompts: (told.extend(prompts), prepare(self, prompts))[1]
        ToyModel.encode = lambda self, prompts: (asked.update(prompts), encode(self, prompts))[1]
        evaluation = Evaluation(prompts=("0", "1", "2"), sampler=ODESampler(grid=ShiftedGrid(steps=2)), rewards=(Bright(),))
        trainer(tmp_path / "run", updates=2, evaluation=evaluation).run()
        assert set(told) == asked
        assert len(told) == len(set(told))

    assert [child.wait() for child in fork_pair(work, tmp_path)] == [0, 0]
