"""Killed at any moment and resumed, a run ends bit for bit like the one that nothing interrupted."""

import json
import logging
import shutil
import signal

import pytest
import torch
from toys import GRID, Bright, assert_same_run, count_lines, fork, lines, sde, signal_self, trainer

from flowrl.errors import CheckpointError
from flowrl.flow import CPS, DanceSDE
from flowrl.models import LoRA, StableDiffusion3
from flowrl.rl import MultiGranularityAdvantage
from flowrl.train import AdamW, Evaluation, UpdateSettings
from flowrl.train.metrics import MetricsLog, read_metrics
from samplers import ODESampler, SingularStochasticSampler, WindowSampler

UPDATES = 8


def pictures(prompts):
    return Evaluation(prompts=prompts, sampler=ODESampler(grid=GRID), rewards=(Bright(),), images_per_prompt=2)


def lora_with_everything(folder, pipeline_folder):
    """G²RPO on SD3 with LoRA, average of weights, cosine schedule after a warm-up, several optimiser steps and epochs, evaluations."""
    (folder / "prompts.txt").write_text("red\nblue\n", encoding="utf-8")
    return {
        "model": StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0, lora=LoRA(rank=4, alpha=8.0), decode_batch=64),
        "sampler": SingularStochasticSampler(
            grid=GRID, dynamics=CPS(noise_level=0.6), group_size=4, sde_indices=(0, 1), strides=(1, 2), state_dtype="bfloat16"
        ),
        "advantage": MultiGranularityAdvantage(),
        "optimizer": AdamW(lr=1e-2, schedule="cosine", warmup_steps=3),
        "update": UpdateSettings(micro_batch=1, epochs=2, minibatches=2),
        "ema_decay": 0.9,
        "evaluation": pictures(("red", "blue")),
    }


def random_windows(folder, pipeline_folder):
    """MixGRPO with windows at random places."""
    return {"sampler": WindowSampler(grid=GRID, dynamics=DanceSDE(noise_level=0.4), group_size=4, size=2, shift_every=1, order="random")}


def random_subsets(folder, pipeline_folder):
    """DanceGRPO: shared noise, each update trains some of the steps."""
    return {"sampler": sde(dynamics=DanceSDE(noise_level=0.4), shared_noise=True, exclude_last=True, train_fraction=0.6)}


def run_until_killed(run_dir, updates, fields):
    """Train in a child process that is killed in the middle of an update; returns its exit status."""

    def work():
        signal_self(run_dir, updates, signal.SIGKILL)
        trainer(run_dir, **fields).run()

    status = fork(work, run_dir.parent / "output").wait()
    assert count_lines(run_dir) == updates
    return status


@pytest.mark.parametrize("make", [lora_with_everything, random_windows, random_subsets], ids=lambda make: make.__name__)
def test_a_run_killed_with_sigkill_and_resumed_ends_like_the_uninterrupted_one(make, pipeline_folder, tmp_path):
    fields = {"updates": UPDATES, "checkpoint_every": 3, "evaluate_every": 2, **make(tmp_path, pipeline_folder)}
    trainer(tmp_path / "whole", **fields).run()
    assert run_until_killed(tmp_path / "run", 5, fields) == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("update_*")] == ["update_000003"]
    summary = trainer(tmp_path / "run", **fields).run(resume=True)
    assert (summary.updates, summary.checkpoint.name) == (UPDATES, "update_000008")
    assert_same_run(tmp_path / "whole", tmp_path / "run", UPDATES)
    assert [line["update"] for line in lines(tmp_path / "run")] == list(range(UPDATES))


def test_randomly_drawn_windows_differ_between_updates(tmp_path):
    drawn = [random_windows(None, None)["sampler"].for_update(update, 0).start for update in range(8)]
    assert len(set(drawn)) > 1


def test_a_run_killed_before_its_first_checkpoint_starts_afresh_and_is_the_same(tmp_path):
    fields = {"updates": 6, "checkpoint_every": 100, "evaluation": pictures(("0", "1")), "evaluate_every": 2}
    trainer(tmp_path / "whole", **fields).run()
    assert run_until_killed(tmp_path / "run", 3, fields) == -signal.SIGKILL
    trainer(tmp_path / "run", **fields).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 6)


def test_a_finished_run_can_be_prolonged(tmp_path):
    fields = {"evaluation": pictures(("0", "1")), "evaluate_every": 4}
    trainer(tmp_path / "whole", updates=8, **fields).run()
    trainer(tmp_path / "run", updates=4, **fields).run()
    trainer(tmp_path / "run", updates=8, **fields).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 8)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    fields = {"evaluation": pictures(("0",)), "evaluate_every": 3}
    trainer(tmp_path / "run", **fields).run()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns * ("checkpoints" in path.parts)) for path in files}
    assert trainer(tmp_path / "run", **fields).run(resume=True).updates == 6
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns * ("checkpoints" in path.parts)) for path in files}


def test_resuming_a_finished_run_says_so_and_how_to_go_on(tmp_path, caplog):
    trainer(tmp_path / "run", updates=2).run()
    with caplog.at_level(logging.INFO, logger="flowrl"):
        trainer(tmp_path / "run", updates=3).run(resume=True)
        assert "is finished" not in caplog.text
        trainer(tmp_path / "run", updates=3).run(resume=True)
    told = f"run is finished: all of its 3 updates are done. To train on: flowrl train {tmp_path}/run/config.yaml updates=6 --resume"
    assert told in caplog.text


def test_a_checkpoint_of_another_configuration_is_refused_by_its_dotted_keys(tmp_path):
    trainer(tmp_path / "run", updates=2).run()
    other = {"sampler": sde(group_size=8), "optimizer": AdamW(lr=2e-2)}
    message = (
        r"checkpoint of another configuration \(sampler\.group_size: 4 -> 8; optimizer\.lr: 0\.01 -> 0\.02\); resume with the run's own, "
        rf"which may take more updates: flowrl train {tmp_path}/run/config\.yaml updates=… --resume; or choose another run_dir"
    )
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path / "run", updates=4, **other).run(resume=True)


def test_what_does_not_make_it_another_run_may_change(tmp_path):
    trainer(tmp_path / "whole", updates=6).run()
    trainer(tmp_path / "run", updates=4).run()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    trainer(tmp_path / "moved", updates=6, checkpoint_every=3, reward_batch=5, keep_checkpoints=1).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "moved", 6)


def test_a_model_may_save_memory_from_a_resume_on(pipeline_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("red\nblue\n", encoding="utf-8")
    fields = {"path": str(pipeline_folder), "max_sequence_length": 0, "lora": LoRA(rank=2, alpha=2.0)}
    trainer(tmp_path / "run", model=StableDiffusion3(**fields), updates=2).run()
    thrifty = StableDiffusion3(**fields, gradient_checkpointing=True, text_encoders="drop", decoder="offload", decode_batch=1)
    assert trainer(tmp_path / "run", model=thrifty, updates=3).run(resume=True).updates == 3
    with pytest.raises(CheckpointError, match=r"model.guidance_scale: 1.0 -> 2.0"):
        trainer(tmp_path / "run", model=StableDiffusion3(**fields, guidance_scale=2.0), updates=4).run(resume=True)


def test_a_metrics_line_that_a_crash_cut_off_is_dropped_with_all_that_will_be_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [{"kind": kind, "update": update} for update in range(4) for kind in ("eval", "train")]
    path.write_text("".join(json.dumps(line) + "\n" for line in whole) + '{"kind": "train", "upd', encoding="utf-8")
    assert list(read_metrics(path)) == whole
    log = MetricsLog(tmp_path, keep_before=2, keep_evaluation=True)
    assert list(read_metrics(path)) == whole[:5]
    assert log.has_evaluation(2)
    assert not log.has_evaluation(3)
    MetricsLog(tmp_path, keep_before=2, keep_evaluation=False)
    assert list(read_metrics(path)) == whole[:4]


def test_the_run_uses_no_global_random_numbers(tmp_path):
    torch.manual_seed(1)
    trainer(tmp_path / "one", updates=2).run()
    torch.manual_seed(2)
    trainer(tmp_path / "other", updates=2).run()
    assert_same_run(tmp_path / "one", tmp_path / "other", 2)
