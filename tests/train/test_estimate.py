from dataclasses import replace

import pytest

from flowrl.config import instantiate, load_config
from flowrl.models import LoRA
from flowrl.train.estimate import memory_parts, rollout_cost
from samplers import singular_evaluations

FLOAT32 = 4


@pytest.fixture(scope="module")
def trainer():
    overrides = ["sampler.group_size=6", "sampler.sde_indices=[0,2]", "prompts_per_update=5", "sampler.strides=[1,2,3]"]
    return instantiate(load_config("image/digits_g2rpo", overrides))


@pytest.fixture(scope="module")
def model(trainer):
    return trainer.model.load("cpu")


def test_an_update_costs_what_the_closed_form_says(trainer):
    cost = rollout_cost(trainer)
    assert cost.network_evaluations == 5 * singular_evaluations(10, (0, 2), 6, (1, 2, 3))
    assert cost.pictures == 5 * 6 * 2 * 3  # prompts, group, stochastic steps, strides
    assert cost.trained_states == 5 * 2  # all branches of a step share their parent
    assert cost.stored_states == 180 + 10 + 5 * 6 * 2


def test_guidance_doubles_the_evaluations_of_the_network(trainer):
    guided = replace(trainer, model=replace(trainer.model, guidance_scale=4.5))
    assert rollout_cost(guided).network_evaluations == 2 * rollout_cost(trainer).network_evaluations


def test_weights_are_counted_as_the_loaded_model_has_them(trainer, model):
    sizes = {part.name: part.size for part in memory_parts(trainer)}
    trained = sum(parameter.numel() for parameter in model.trainable_parameters())
    frozen = sum(parameter.numel() for parameter in model.module.parameters() if not parameter.requires_grad)
    positions = sum(buffer.numel() for _, buffer in model.module.named_buffers())
    assert sizes["LoRA"] == sizes["gradients"] == FLOAT32 * trained
    assert sizes["optimiser moments"] == 2 * FLOAT32 * trained
    assert sizes["network"] == FLOAT32 * (frozen + positions)
    assert sizes["vae"] == FLOAT32 * sum(parameter.numel() for parameter in model.pipeline.vae.parameters())


def test_latents_are_counted_in_the_models_own_shape_and_shared_by_processes(trainer, model):
    state = model.state_shape[0] * model.state_shape[1] * model.state_shape[2]
    latents = [memory_parts(trainer, processes)[-1] for processes in (1, 5)]
    assert [part.size for part in latents] == [250 * state * FLOAT32, 50 * state * FLOAT32]


def test_full_fine_tuning_trains_the_whole_network_in_float32(trainer):
    source = replace(trainer.model, lora=None, dtype="bfloat16")
    sizes = {part.name: part.size for part in memory_parts(replace(trainer, model=source, ema_decay=0.9))}
    assert sizes["network"] == sizes["gradients"] == sizes["weight average"] == sizes["optimiser moments"] / 2
    assert "LoRA" not in sizes
    halved = {part.name: part.size for part in memory_parts(replace(trainer, model=replace(source, lora=LoRA())))}
    assert halved["network"] == sizes["network"] / 2  # frozen weights need no more than what they compute in


def test_a_model_that_is_not_on_this_machine_has_no_known_size(trainer):
    elsewhere = replace(trainer, model=replace(trainer.model, path="stabilityai/stable-diffusion-3.5-medium"))
    with pytest.raises(ValueError, match="not on this machine"):
        memory_parts(elsewhere)
