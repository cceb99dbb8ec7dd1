"""Runs on packed weights: two processes train like one, a resumed run like one that was not stopped; strategies that do not fit refuse."""

import accelerate
import pytest
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.testing import assert_close
from toys import assert_same_run, fork_pair, lines, trainer

from flowrl.errors import ConfigError
from flowrl.models import LORA_FILE, LoRA, StableDiffusion3
from flowrl.rl import PPOClip
from flowrl.train.parallel import start_accelerator


@pytest.fixture
def fields(pipeline_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("red\nblue\n", encoding="utf-8")
    model = StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0, lora=LoRA(rank=4, alpha=8.0), quantise="nf4")
    return {"model": model, "objective": PPOClip(kl_weight=0.1), "updates": 2, "checkpoint_every": 1, "ema_decay": 0.9}


def test_packed_weights_with_a_kl_to_the_reference_train_alike_in_one_and_two_processes(fields, tmp_path):
    trainer(tmp_path / "one", **fields).run()
    pair = fork_pair(lambda: trainer(tmp_path / "two", **fields).run(), tmp_path)
    assert [child.wait() for child in pair] == [0, 0], [child.output.read_text() for child in pair]
    for mine, theirs in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert theirs.keys() == mine.keys()
        assert all(theirs[name] == pytest.approx(value, rel=1e-3, abs=3e-7) for name, value in mine.items() if name != "kind")
    one, two = (load_file(tmp_path / name / "checkpoints/update_000002/weights" / LORA_FILE) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert_close(two[name], weight, rtol=0, atol=7e-5)


def test_a_resumed_run_on_packed_weights_is_the_same_run(fields, tmp_path):
    trainer(tmp_path / "one", **fields).run()
    trainer(tmp_path / "two", **fields | {"updates": 1}).run()
    trainer(tmp_path / "two", **fields).run(resume=True)
    assert_same_run(tmp_path / "one", tmp_path / "two", 2)


@pytest.mark.parametrize("strategy", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_strategies_that_would_cut_or_cast_packed_weights_are_refused(strategy, fields, monkeypatch, tmp_path):
    monkeypatch.setattr(accelerate.Accelerator, "distributed_type", strategy)
    with pytest.raises(ConfigError, match=r"model\.quantise='nf4' packs weights, which FSDP and DeepSpeed would cut or cast; leave it out"):
        start_accelerator(trainer(tmp_path / "run", **fields))
