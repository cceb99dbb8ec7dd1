"""accelerate's strategies: the config files are read as meant, and FSDP 2 trains, averages, saves and resumes like one process.

There is no GPU here, and on a CPU accelerate ignores its FSDP plugin. So its state is told that the strategy is FSDP, after which all of
accelerate's own FSDP 2 code runs, over gloo: wrapping, gradients, clipping, sharded checkpoints. DeepSpeed is not installed here; only its
file is checked, and what the trainer tells it.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, compare_versions
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from toys import DYNAMICS, GRID, SHAPE, Bright, ExplodingSource, LinearNet, ToyModel, fork, fork_pair, lines, trainer

from flowrl.config import bundled_configs
from flowrl.errors import CheckpointError, ConfigError
from flowrl.models import FirstBlockCache, LoRA, StableDiffusion3
from flowrl.rl import PPOClip
from flowrl.train import AdamW8bit, Evaluation, UpdateSettings
from flowrl.train.ema import WeightAverage
from flowrl.train.learner import Learner
from flowrl.train.parallel import full_state, local_shard, reshard, start_accelerator
from samplers import ODESampler, SingularStochasticSampler

needs_fsdp2 = pytest.mark.skipif(compare_versions("accelerate", "<", "1.13"), reason="this accelerate is refused for FSDP 2")

FOLDER = Path(__file__).parents[2] / "configs" / "accelerate"


def launched(name, *options):
    """The settings and the environment that ``accelerate launch --config_file`` gives its processes."""
    arguments = ["--config_file", str(FOLDER / f"{name}.yaml"), *options, "-m", "flowrl.cli.train", "CONFIG"]
    settings, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if settings.use_deepspeed:
        settings.deepspeed_fields_from_accelerate_config = list(defaults.deepspeed_config)
        return settings, prepare_deepspeed_cmd_env(settings)[1]
    return settings, prepare_multi_gpu_env(settings)


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("ddp_1gpu", "NO", 1, 1),
        ("ddp_8gpu", "MULTI_GPU", 1, 8),
        ("ddp_2x8gpu", "MULTI_GPU", 2, 16),
        ("fsdp2_8gpu", "FSDP", 1, 8),
        ("fsdp2_2x8gpu", "FSDP", 2, 16),
        ("deepspeed_zero2_8gpu", "DEEPSPEED", 1, 8),
        ("deepspeed_zero2_2x8gpu", "DEEPSPEED", 2, 16),
    ],
)
def test_accelerate_reads_each_file_as_its_name_says(name, kind, machines, processes):
    found = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert (found.distributed_type.value, found.num_machines, found.num_processes) == (kind, machines, processes)
    assert (found.mixed_precision, found.use_cpu) == ("no", False)


def test_every_file_opens_with_its_purpose_and_the_command_that_uses_it():
    files = sorted(FOLDER.glob("*.yaml"))
    assert len(files) == 7
    for path in files:
        comments = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))[0]
        assert re.search(rf"accelerate launch --config_file configs/accelerate/{path.name} .*-m flowrl\.cli\.train CONFIG\n", comments)
    assert not [name for name in bundled_configs() if "accelerate" in name]


def test_the_launcher_hands_the_strategies_to_its_processes():
    settings, environment = launched("fsdp2_8gpu")
    assert (settings.use_fsdp, settings.nproc_per_node) == (True, "8")
    expected = {"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    assert expected.items() <= environment.items()
    assert launched("deepspeed_zero2_8gpu")[1]["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    settings, _ = launched("ddp_2x8gpu", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    assert (settings.nnodes, settings.nproc_per_node, settings.node_rank) == ("2", "8", 1)
    assert "10.0.0.1" in (vars(settings).get("master_addr") or settings.rdzv_endpoint)


# -------------------------------------------------------------------------------------------------------------- FSDP 2


def shard(version=2):
    """Have accelerate believe that it was launched with FSDP, with the plugin that the config file gives."""
    os.environ.update({name: value for name, value in launched("fsdp2_8gpu")[1].items() if name.startswith("FSDP_")})

    class Sharded(accelerate.Accelerator):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            self.state.fsdp_plugin = FullyShardedDataParallelPlugin()
            self.state.fsdp_plugin.fsdp_version = version
            self.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.Accelerator = Sharded


def assert_same_release(one, two, tolerance):
    """The files for diffusers, of trained and averaged weights."""
    for path in sorted(one.glob("weights*/**/*.safetensors")):
        mine, theirs = load_file(path), load_file(two / path.relative_to(one))
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, rtol=0, atol=tolerance)
    for path in one.glob("weights*/**/config.json"):
        assert json.loads(path.read_text()) == json.loads((two / path.relative_to(one)).read_text())


@needs_fsdp2
@pytest.mark.parametrize(
    ("lora", "tolerance"),
    [
        (LoRA(rank=4, alpha=8.0), (2e-7, 7e-5)),  # measured: evaluation 2e-8, weights 6e-6 of 0.2
        (None, (3e-5, 2e-3)),  # measured: evaluation 3e-6, weights 2e-4 of 1
    ],
    ids=["lora", "all weights"],
)
def test_sharded_training_with_an_average_and_a_resumption_gives_the_result_of_one_process(lora, tolerance, pipeline_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("red\nblue\n", encoding="utf-8")
    fields = {
        "model": StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0, lora=lora),
        "sampler": SingularStochasticSampler(grid=GRID, dynamics=DYNAMICS, group_size=4, sde_indices=(0, 1), strides=(1,)),
        "objective": PPOClip(kl_weight=0.1 if lora else 0.0),
        "update": UpdateSettings(micro_batch=1, epochs=2),
        "evaluation": Evaluation(prompts=("red", "blue"), sampler=ODESampler(grid=GRID), rewards=(Bright(),), images_per_prompt=2),
        "evaluate_every": 1,  # the average must act, and give way again, between updates
        "ema_decay": 0.9,
    }
    trainer(tmp_path / "one", updates=4, **fields).run()

    def work(updates):
        shard()
        trainer(tmp_path / "two", updates=updates, **fields).run(resume=updates > 2)

    for updates in (2, 4):
        pair = fork_pair(lambda updates=updates: work(updates), tmp_path)
        assert [child.wait() for child in pair] == [0, 0], [child.output.read_text() for child in pair]
    for mine, theirs in zip(lines(tmp_path / "one", "eval"), lines(tmp_path / "two", "eval"), strict=True):
        assert theirs["eval/bright"] == pytest.approx(mine["eval/bright"], abs=tolerance[0])
    for mine, theirs in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        for name in ("reward", "loss", "grad_norm", "ratio_max_dev"):
            assert theirs[name] == pytest.approx(mine[name], rel=3e-3, abs=3e-7), name
    assert (tmp_path / "two" / "checkpoints" / "update_000004" / "state" / "pytorch_model_fsdp_0").is_dir()  # accelerate's FSDP
    assert_same_release(*[tmp_path / run / "checkpoints" / "update_000004" for run in ("one", "two")], tolerance[1])
    with pytest.raises(CheckpointError, match=r"cannot be restored: .*was it written under another strategy"):
        trainer(tmp_path / "two", updates=5, **fields).run(resume=True)


def test_copies_that_a_forward_pass_has_gathered_never_hide_the_weights(tmp_path):
    def work():
        torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/meeting")
        model = ToyModel(fully_shard(LinearNet()))
        parameters, x = model.trainable_parameters(), torch.ones(1, *SHAPE)
        names = dict.fromkeys(("accelerator", "objective", "optimizer", "schedule", "settings"))
        average = WeightAverage(parameters, 0.5)
        learner = Learner(model=model, prepared=model.module, parameters=parameters, average=average, **names)

        def velocity():
            with torch.no_grad():
                return model.field()(x, 0.5, model.encode(["0"]))

        before = velocity()
        for parameter in parameters:
            local_shard(parameter).add_(1.0)
        reshard(model.module)
        moved = velocity()  # leaves the gathered weights behind
        assert (moved - before).abs().max() > 1
        with learner.released_weights():
            assert torch.equal(velocity(), before)
        assert torch.equal(velocity(), moved)
        assert torch.equal(full_state(model.module)["time"], LinearNet().time.detach() + 1)

    child = fork(work, tmp_path / "output")
    assert child.wait() == 0, child.output.read_text()


@needs_fsdp2
def test_what_cannot_be_sharded_is_refused_before_training(pipeline_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("red\nblue\n", encoding="utf-8")
    full = StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0)

    def work(version, **fields):
        shard(1 if version == 1 else 2)
        accelerate.__version__ = version if isinstance(version, str) else accelerate.__version__
        trainer(tmp_path / "run", **fields).run()

    for version, fields, message in (
        (2, {"model": full, "objective": PPOClip(kl_weight=0.1)}, "ConfigError: a KL to the reference model cannot swap all weights"),
        (1, {"model": ExplodingSource()}, "ConfigError: FSDP 1 flattens parameters"),
        (2, {"model": replace(full, tail_cache=FirstBlockCache())}, "ConfigError: FirstBlockCache decides on each process"),
        (2, {"model": ExplodingSource(), "optimizer": AdamW8bit(lr=1e-3)}, "ConfigError: AdamW8bit does not know sharded weights"),
        (
            "1.12.0",
            {"model": ExplodingSource()},
            "ConfigError: accelerate 1.12.0 does not restore optimisers under FSDP 2; install a newer",
        ),
    ):
        pair = fork_pair(lambda version=version, fields=fields: work(version, **fields), tmp_path)
        assert [child.wait() for child in pair] == [1, 1]
        for child in pair:
            assert message in child.output.read_text()


# ----------------------------------------------------------------------------------------------------------- DeepSpeed


def with_deepspeed(monkeypatch, stage):
    monkeypatch.setattr(accelerate.Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    plugin = SimpleNamespace(
        enable_msamp=False, zero_stage=stage, deepspeed_config={"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"}
    )
    monkeypatch.setattr(accelerate.state.AcceleratorState, "deepspeed_plugin", plugin)
    return plugin


def test_deepspeed_is_told_the_batch_and_the_norm_that_the_trainer_was_given(monkeypatch, tmp_path):
    plugin = with_deepspeed(monkeypatch, 2)
    start_accelerator(trainer(tmp_path / "run", update=UpdateSettings(micro_batch=3, max_grad_norm=0.5)))
    assert plugin.deepspeed_config == {"train_micro_batch_size_per_gpu": 3, "gradient_clipping": 0.5}


def test_sharded_parameters_of_deepspeed_are_refused(monkeypatch, tmp_path):
    with_deepspeed(monkeypatch, 3)
    with pytest.raises(ConfigError, match=r"ZeRO 3 shards parameters, which rollouts need whole; set zero_stage: 2, or use FSDP 2"):
        trainer(tmp_path / "run", model=ExplodingSource()).run()


def test_weights_that_lie_in_one_buffer_are_copied_apart_before_they_are_saved():
    module = torch.nn.Linear(3, 2)
    assert full_state(module) is None
    buffer = torch.arange(8.0)  # as DeepSpeed lays them out
    module.weight.data, module.bias.data = buffer[:6].view(2, 3), buffer[6:]
    state = full_state(module)
    assert {name: tensor.tolist() for name, tensor in state.items()} == {"weight": [[0, 1, 2], [3, 4, 5]], "bias": [6, 7]}
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())
