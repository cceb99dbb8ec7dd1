"""Averaged weights, schedules, precision and recomputed activations."""

import math

import pytest
import torch
from toys import (
    GRID,
    PROMPTS,
    Bright,
    LinearNet,
    ToyModel,
    assert_equal,
    gradient,
    lines,
    make_experience,
    make_learner,
    sde,
    trainer,
)

from flowrl.models import LoRA, StableDiffusion3
from flowrl.rl import PPOClip
from flowrl.train import AdamW, Evaluation, UpdateSettings
from flowrl.train.ema import WeightAverage
from flowrl.train.run import Run
from samplers import ODESampler

RECOMPUTE = UpdateSettings(old_log_prob="recompute")


@pytest.fixture
def sd3(pipeline_folder):
    return lambda **fields: StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0, **fields)


@pytest.fixture
def colours(tmp_path):
    (tmp_path / "colours.txt").write_text("red\nblue\n", encoding="utf-8")
    return str(tmp_path / "colours.txt")


# ---------------------------------------------------------------------------------------------------- averaged weights


@pytest.mark.parametrize(("decay", "last"), [(0.9, 0.25 * 40 / 11 + 0.75 * 8), (0.2, 0.2 * 40 / 11 + 0.8 * 8)], ids=["warming", "warm"])
def test_the_average_of_weights_by_hand(decay, last):
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average, found = WeightAverage([weight], decay), []
    for value in (2.0, 4.0, 8.0):  # decays 0, 2/11, and 3/12 or the given one
        weight.data.fill_(value)
        average.step()
        with average.applied():
            found.append(weight.item())
        assert weight.item() == value
    assert found == pytest.approx([2.0, 2 / 11 * 2 + 9 / 11 * 4, last])


def test_the_average_is_that_of_diffusers():
    from diffusers.training_utils import EMAModel

    weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    ours, theirs = WeightAverage(weights, 0.7), EMAModel(weights, decay=0.7)
    for _ in range(30):
        for weight in weights:
            weight.data.add_(torch.randn(weight.shape))
        ours.step()
        theirs.step(weights)
    for mine, other in zip(ours.state_dict()["average"], theirs.shadow_params, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_an_average_goes_on_from_its_state():
    weight = torch.nn.Parameter(torch.ones(2))
    first, second = WeightAverage([weight], 0.9), WeightAverage([weight], 0.9)
    for value in (2.0, 5.0):
        weight.data.fill_(value)
        first.step()
    second.load_state_dict(first.state_dict())
    weight.data.fill_(-1.0)
    first.step()
    second.step()
    assert_equal(first.state_dict(), second.state_dict())


def test_the_average_takes_in_every_optimiser_step_and_is_what_evaluation_sees(tmp_path):
    evaluation = Evaluation(prompts=PROMPTS, sampler=ODESampler(grid=GRID), rewards=(Bright(),))
    update = UpdateSettings(epochs=2, minibatches=2)
    run = Run(trainer(tmp_path / "run", updates=3, update=update, ema_decay=0.5, evaluation=evaluation), resume=False)
    folder = run.loop().checkpoint
    assert run.learner.average.state_dict()["steps"] == 3 * 4
    brightness = {}
    for kind in ("weights", "weights_ema"):
        model = ToyModel(LinearNet())
        model.load_weights(folder / kind)
        brightness[kind] = evaluation.run(model).line()["eval/bright"]
    assert lines(tmp_path / "run", "eval")[-1]["eval/bright"] == brightness["weights_ema"] != brightness["weights"]


# ------------------------------------------------------------------------------------------------------------ schedule


def test_the_learning_rate_warms_up_and_falls_along_a_cosine_once_per_optimiser_step(tmp_path):
    optimizer = AdamW(lr=0.2, schedule="cosine", warmup_steps=2)
    trainer(tmp_path / "run", updates=4, optimizer=optimizer, update=UpdateSettings(minibatches=2)).run()
    rates = [0.0, 0.1] + [0.1 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]  # of 8 steps, two of them warm-up
    per_update = [(rates[step] + rates[step + 1]) / 2 for step in (0, 2, 4, 6)]
    assert [line["lr"] for line in lines(tmp_path / "run")] == pytest.approx(per_update, abs=1e-9)


def test_a_schedule_starts_from_0_where_it_warms_up(tmp_path):
    trainer(tmp_path / "run", updates=1, optimizer=AdamW(lr=0.2, schedule="constant_with_warmup", warmup_steps=4)).run()
    assert_equal(dict(ToyModel.latest.module.state_dict()), dict(LinearNet().state_dict()))
    trainer(tmp_path / "run", updates=4, optimizer=AdamW(lr=0.2, schedule="constant_with_warmup", warmup_steps=4)).run(resume=True)
    assert [line["lr"] for line in lines(tmp_path / "run")] == pytest.approx([0, 0.05, 0.1, 0.15])


# ----------------------------------------------------------------------------------------------------------- precision


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights(tmp_path):
    seen = []

    class Spy(LinearNet):
        def forward(self, x, t, index):
            seen.append((x.flatten(1) @ self.weight).dtype)
            return super().forward(x, t, index)

    class Source:
        def load(self, device):
            return ToyModel(Spy())

    trainer(tmp_path / "run", model=Source(), mixed_precision="bf16", update=RECOMPUTE, updates=3).run()
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in ToyModel.latest.trainable_parameters()} == {torch.float32}
    assert all(line["ratio_max_dev"] == 0 for line in lines(tmp_path / "run"))


@pytest.mark.parametrize("fields", [{"mixed_precision": "bf16"}, {}], ids=["autocast by accelerate", "the model's own dtype"])
def test_stable_diffusion_3_trains_in_bfloat16(fields, sd3, colours, tmp_path):
    model = sd3(lora=LoRA(rank=4), dtype="float32" if fields else "bfloat16")
    run = Run(trainer(tmp_path / "run", model=model, prompts=colours, update=RECOMPUTE, updates=2, **fields), resume=False)
    before = [parameter.detach().clone() for parameter in run.learner.parameters]
    run.loop()
    assert all(parameter.dtype == torch.float32 for parameter in run.learner.parameters)
    moved = [not torch.equal(parameter, old) for parameter, old in zip(run.learner.parameters, before, strict=True)]
    assert sum(moved) > 0.8 * len(moved)  # what the last block tells the text is not used
    assert all(line["ratio_max_dev"] < 1e-6 for line in lines(tmp_path / "run"))


# ------------------------------------------------------------------------------------------------ gradient checkpoints


@pytest.mark.parametrize("lora", [LoRA(rank=4), None], ids=["lora", "all weights"])
def test_recomputed_activations_give_the_same_gradient(lora, sd3):
    found, passes = [], []
    for gradient_checkpointing in (False, True):
        model = sd3(lora=lora, gradient_checkpointing=gradient_checkpointing).load("cpu")
        calls = []
        model.module.transformer_blocks[0].attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        generator = torch.Generator().manual_seed(0)
        for parameter in model.trainable_parameters():
            parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        condition = model.encode(["red", "blue"])
        noise = torch.randn(8, *model.state_shape, generator=generator)
        experience = make_experience(model, sde(), condition=condition, noise=noise)
        calls.clear()
        found.append(gradient(make_learner(model, micro_batch=16), experience))
        passes.append(len(calls))
    assert passes == [2, 4]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-7)


def test_the_kl_to_the_reference_is_0_for_a_new_lora_and_not_of_a_trained_one(sd3, colours, tmp_path):
    model = sd3(lora=LoRA(rank=4, alpha=8.0))
    objective = PPOClip(kl_weight=0.1)
    trainer(tmp_path / "run", model=model, prompts=colours, objective=objective, updates=3, optimizer=AdamW(lr=1e-2)).run()
    kl = [line["kl"] for line in lines(tmp_path / "run")]
    assert kl[0] < 1e-12
    assert min(kl[1:]) > 1e-6
