"""Checkpoints: whole or not there, the newest ones kept, damage found, and readable by diffusers."""

import json
import os
import resource
import shutil
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toys import Bright, ToyModel, assert_same_run, count_lines, fork, trainer

from flowrl.config import instantiate
from flowrl.errors import CheckpointError
from flowrl.models import LORA_FILE, LoRA, StableDiffusion3
from flowrl.rl import GroupAdvantage
from flowrl.train import AdamW, Evaluation, RLTrainer
from flowrl.train.checkpoint import CheckpointFolder, check_complete
from flowrl.train.run import Run
from rewards import Brightness
from samplers import ODESampler, SDESampler, ShiftedGrid


def write(folder, update):
    with folder.staging(update) as staging:
        (staging / "state").mkdir()
        (staging / "state" / "numbers.bin").write_bytes(bytes(100))
        (staging / "config.yaml").write_text("a: 1\n", encoding="utf-8")


def names(folder):
    return sorted(path.name for path in folder.root.iterdir())


def empty(path):
    (path / "state" / "numbers.bin").unlink()


def truncate(path):
    (path / "state" / "numbers.bin").write_bytes(b"1" * 99)


def cut_manifest(path):
    (path / "manifest.json").write_text((path / "manifest.json").read_text()[:20])


def drop_manifest(path):
    (path / "manifest.json").unlink()


DAMAGES = [
    (empty, r"state/numbers\.bin is missing"),
    (truncate, r"state/numbers\.bin has 99 bytes instead of 100"),
    (cut_manifest, r"manifest\.json cannot be read"),
    (drop_manifest, r"it has no manifest\.json"),
]


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(root=tmp_path / "checkpoints", keep=2)


# ---------------------------------------------------------------------------------------------------------- the folder


def test_only_the_newest_are_kept_in_the_order_of_their_numbers(folder):
    for update in (5, 10, 999_999, 1_000_000):
        write(folder, update)
    assert names(folder) == ["update_1000000", "update_999999"]
    assert folder.latest() == folder.path(1_000_000)


def test_a_block_that_fails_leaves_the_folder_as_it_was(folder):
    write(folder, 1)

    def fail():
        with folder.staging(2) as staging:
            (staging / "half").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(folder) == ["update_000001"]


def test_a_checkpoint_written_again_replaces_the_old_one(folder):
    write(folder, 1)
    truncate(folder.path(1))
    write(folder, 1)
    assert names(folder) == ["update_000001"]
    assert check_complete(folder.path(1)) == 1


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_damage_is_named_and_the_one_before_is_taken_with_a_warning(damage, message, folder, caplog):
    write(folder, 1)
    write(folder, 2)
    damage(folder.path(2))
    with pytest.raises(CheckpointError, match=message):
        check_complete(folder.path(2))
    assert folder.latest() == folder.path(1)
    assert str(folder.path(2)) in caplog.text
    assert f"taking {folder.path(1)}" in caplog.text


def test_where_all_are_damaged_there_is_nothing_to_go_on_from(folder):
    assert folder.latest() is None
    write(folder, 1)
    truncate(folder.path(1))
    with pytest.raises(CheckpointError, match=r"no complete checkpoint to go on from: .*99 bytes.*Start again in another run_dir"):
        folder.latest()


def test_newer_damaged_checkpoints_never_push_out_good_ones(folder):
    for update in (1, 8, 9):
        write(folder, update)
    write(CheckpointFolder(root=folder.root, keep=5), 2)
    for update in (8, 9):
        truncate(folder.path(update))
    write(folder, 3)
    assert folder.latest() == folder.path(3)
    truncate(folder.path(3))
    assert folder.latest() == folder.path(2)


def test_to_keep_none_is_refused(folder):
    with pytest.raises(ValueError, match=r"keep must be at least 1, got 0; the last good checkpoint is never deleted"):
        CheckpointFolder(root=folder.root, keep=0)


# ------------------------------------------------------------------------------------------------------------- in a run


@pytest.mark.parametrize("place", ["save_weights", "rename"])
def test_a_crash_while_writing_leaves_the_earlier_checkpoint_and_the_resumed_run_is_the_same(place, tmp_path):
    trainer(tmp_path / "whole").run()

    def crash(self, target, **state):
        if "000004" in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, target, **state)

    owner, name = (ToyModel, "save_weights") if place == "save_weights" else (type(tmp_path), "replace")
    original = getattr(owner, name)

    def work():
        setattr(owner, name, crash)
        trainer(tmp_path / "run").run()

    assert fork(work, tmp_path / "output").wait() == -signal.SIGKILL
    checkpoints = CheckpointFolder(root=tmp_path / "run" / "checkpoints")
    assert names(checkpoints) == [".writing-000004", "update_000002"]
    assert checkpoints.latest() == checkpoints.path(2)
    trainer(tmp_path / "run").run(resume=True)
    assert names(checkpoints) == ["update_000004", "update_000006"]
    assert_same_run(tmp_path / "whole", tmp_path / "run", 6)


def test_a_run_goes_on_from_the_last_complete_checkpoint(tmp_path):
    trainer(tmp_path / "whole").run()
    trainer(tmp_path / "run", updates=4).run()
    (tmp_path / "run" / "checkpoints" / "update_000004" / "state" / "optimizer.bin").write_bytes(b"")
    trainer(tmp_path / "run").run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 6)


def test_a_full_disk_stops_the_run_with_a_clear_message_and_the_last_good_checkpoint_survives(tmp_path):
    trainer(tmp_path / "whole").run()
    limit = 6000  # bytes per file: the metrics fit, the optimiser's state does not

    def fill_disk(calls):
        if calls == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def work():
        Bright.event = staticmethod(fill_disk)
        trainer(tmp_path / "run").run()

    child = fork(work, tmp_path / "output")
    assert child.wait() == 1
    assert (tmp_path / "run" / "checkpoints" / "update_000002" / "state" / "optimizer.bin").stat().st_size > limit
    checkpoints, message = tmp_path / "run" / "checkpoints", child.output.read_text().rsplit("CheckpointError: ", 1)[1]
    assert message.startswith(f"could not write a checkpoint into {checkpoints}/.writing-000004: ")
    assert message.endswith(f"the last good checkpoint is {checkpoints}/update_000002. Free some space and run again with --resume")
    assert names(CheckpointFolder(root=checkpoints)) == ["update_000002"]
    trainer(tmp_path / "run").run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 6)


def test_weights_that_do_not_fit_on_the_disk_are_told_in_the_same_way(folder, pipeline_folder, tmp_path):
    write(folder, 1)
    model = StableDiffusion3(path=str(pipeline_folder), lora=LoRA(rank=4)).load("cpu")

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with folder.staging(2) as staging:
            model.save_weights(staging / "weights")

    child = fork(work, tmp_path / "output")
    assert child.wait() == 1
    assert f"the last good checkpoint is {folder.path(1)}. Free some space" in child.output.read_text()
    assert names(folder) == ["update_000001"]


def test_an_error_that_has_nothing_to_do_with_the_disk_stays_itself(folder):
    with pytest.raises(RuntimeError, match="CUDA out of memory"), folder.staging(1):
        raise RuntimeError("CUDA out of memory")


# ------------------------------------------------------------------------------------------------------ what is in one


def sd3_trainer(tmp_path, pipeline_folder, lora):
    (tmp_path / "prompts.txt").write_text("red\nblue\n", encoding="utf-8")
    grid = ShiftedGrid(steps=3)
    return RLTrainer(
        run_dir=str(tmp_path / "run"),
        model=StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0, lora=lora),
        sampler=SDESampler(grid=grid, dynamics=trainer(tmp_path / "x").sampler.dynamics, group_size=4),
        reward=Brightness(),
        prompts=str(tmp_path / "prompts.txt"),
        updates=2,
        prompts_per_update=2,
        advantage=GroupAdvantage(),
        optimizer=AdamW(lr=3e-2),
        ema_decay=0.5,
        evaluation=Evaluation(prompts=("red",), sampler=ODESampler(grid=grid), rewards=(Brightness(),)),
    )


def velocities(network):
    generator = torch.Generator().manual_seed(3)
    shapes = {"hidden_states": (2, 4, 8, 8), "encoder_hidden_states": (2, 8, 64), "pooled_projections": (2, 64)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    with torch.no_grad():
        return network(**inputs, timestep=torch.tensor([900.0, 300.0]), return_dict=False)[0]


@pytest.mark.parametrize("kind", ["weights", "weights_ema"])
@pytest.mark.parametrize("lora", [LoRA(rank=4, alpha=8.0), None], ids=["lora", "all weights"])
def test_diffusers_loads_the_weights_of_a_checkpoint_and_gives_the_trained_field(lora, kind, pipeline_folder, tmp_path):
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    run = Run(sd3_trainer(tmp_path, pipeline_folder, lora), resume=False)
    weights = run.loop().checkpoint / kind
    trained = run.learner.model.module
    with run.learner.average.applied() if kind == "weights_ema" else torch.no_grad():
        expected = velocities(trained)
    parts = {"text_encoder_3": None, "tokenizer_3": None}
    if lora is None:
        parts["transformer"] = SD3Transformer2DModel.from_pretrained(weights, subfolder="transformer")
    pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, **parts)
    untrained = velocities(SD3Transformer2DModel.from_pretrained(pipeline_folder, subfolder="transformer"))
    if lora is not None:
        pipeline.load_lora_weights(weights, weight_name=LORA_FILE)
    assert torch.equal(velocities(pipeline.transformer), expected)
    assert (expected - untrained).abs().max() > 1e-3


def test_a_checkpoint_holds_the_configuration_that_builds_the_run_again(pipeline_folder, tmp_path):
    original = sd3_trainer(tmp_path, pipeline_folder, LoRA(rank=4))
    checkpoint = original.run().checkpoint
    for path in (checkpoint / "config.yaml", tmp_path / "run" / "config.yaml"):
        assert instantiate(yaml.safe_load(path.read_text(encoding="utf-8"))) == original
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["update"] == 2
    assert {"config.yaml", "state/optimizer.bin", f"weights/{LORA_FILE}", f"weights_ema/{LORA_FILE}"} < set(manifest["files"])
    shutil.rmtree(checkpoint / "state")
    assert all("lora" in name for name in load_file(checkpoint / "weights" / LORA_FILE))
    assert count_lines(tmp_path / "run") == 2


def test_a_lora_checkpoint_is_small_for_it_leaves_the_frozen_weights_out(pipeline_folder, tmp_path):
    checkpoint = sd3_trainer(tmp_path, pipeline_folder, LoRA(rank=1)).run().checkpoint
    size = sum(path.stat().st_size for path in checkpoint.rglob("*"))
    assert size < (pipeline_folder / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size / 2
