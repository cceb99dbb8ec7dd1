"""AdamW with moments of 8 bits."""

import signal
import sys

import pytest
import torch
from toys import assert_same_run, fork, lines, rewards, sde, signal_self, trainer

from flowrl.errors import MissingExtraError
from flowrl.models import LoRA, StableDiffusion3
from flowrl.train import AdamW, AdamW8bit, UpdateSettings

pytest.importorskip("bitsandbytes", reason="the extra dev has it")


def descend(component, weight, steps):
    """So many steps down ``Σ (w − 1)²``; the weights after each."""
    optimizer, schedule = component.build([weight], steps)
    found = []
    for _ in range(steps):
        (weight - 1).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        found.append(weight.detach().clone())
    return optimizer, found


def starting_weight():
    return torch.nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))


def test_eight_bits_follow_thirty_two_closely_in_a_quarter_of_the_memory():
    numbers = {"lr": 0.01, "weight_decay": 0.1, "schedule": "constant_with_warmup", "warmup_steps": 5}
    exact, full = descend(AdamW(**numbers), starting_weight(), 30)
    small, quantised = descend(AdamW8bit(**numbers), starting_weight(), 30)
    moved = (full[-1] - starting_weight()).abs().mean()
    assert moved > 0.2
    assert 0 < (quantised[-1] - full[-1]).abs().mean() < 0.03 * moved
    assert torch.equal(quantised[0], full[0])  # a learning rate of 0
    held = [
        sum(tensor.nbytes for tensor in state.values() if isinstance(tensor, torch.Tensor))
        for state in (*exact.state.values(), *small.state.values())
    ]
    assert held[0] >= 8 * 4096
    assert held[1] - 2 * 256 * 4 <= 2 * 4096 + 2 * 4 * 4096 // 256  # but for its two tables: a byte a moment, a scale a block


def test_tensors_below_the_limit_keep_float32_moments():
    weight = starting_weight()
    optimizer, _ = descend(AdamW8bit(lr=0.01, quantise_from=4097), weight, 1)
    assert optimizer.state[weight]["state1"].dtype == torch.float32
    optimizer, _ = descend(AdamW8bit(lr=0.01, quantise_from=4096), weight, 1)
    assert optimizer.state[weight]["state1"].dtype == torch.uint8


def test_a_restored_optimiser_goes_on_bit_for_bit(tmp_path):
    whole, half = starting_weight(), starting_weight()
    _, expected = descend(AdamW8bit(lr=0.01), whole, 6)
    optimizer, _ = descend(AdamW8bit(lr=0.01), half, 3)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    other, _ = AdamW8bit(lr=0.01).build([half], 3)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for _ in range(3):
        (half - 1).square().sum().backward()
        other.step()
        other.zero_grad()
    assert torch.equal(half, expected[-1])


def test_a_killed_run_with_eight_bits_resumes_to_the_same_end(tmp_path, pipeline_folder):
    (tmp_path / "prompts.txt").write_text("red\nblue\n", encoding="utf-8")
    fields = {
        "model": StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0, lora=LoRA(rank=4)),
        "optimizer": AdamW8bit(lr=1e-2, quantise_from=1, schedule="cosine", warmup_steps=2),
        "update": UpdateSettings(minibatches=2),
        "sampler": sde(),
        "updates": 5,
        "checkpoint_every": 2,
    }
    trainer(tmp_path / "whole", **fields).run()

    def work():
        signal_self(tmp_path / "run", 3, signal.SIGKILL)
        trainer(tmp_path / "run", **fields).run()

    assert fork(work, tmp_path / "output").wait() == -signal.SIGKILL
    assert len(lines(tmp_path / "run")) == 3
    trainer(tmp_path / "run", **fields).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 5)


def test_a_run_with_eight_bits_earns_the_rewards_of_one_with_thirty_two(tmp_path):
    found = []
    for optimizer in (AdamW(lr=0.05), AdamW8bit(lr=0.05, quantise_from=1)):
        folder = tmp_path / type(optimizer).__name__
        trainer(folder, optimizer=optimizer, updates=12).run()
        found.append(rewards(folder))
    assert found[1] == pytest.approx(found[0], abs=0.005)
    assert found[1] != found[0]


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flowrl-torch\[bitsandbytes\]'"):
        AdamW8bit(lr=0.1).build([starting_weight()], 1)


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="quantise_from must be at least 1, got 0"):
        AdamW8bit(lr=0.1, quantise_from=0)
