"""What holds for Sana, Lumina2, Z-Image and Qwen-Image alike: they draw what diffusers draws, train, and are loaded again."""

from functools import partial

import pytest
import torch
from harness import check_training, ode_samples, standard_noise
from masked_cases import CASES, PROMPTS

from flowrl.flow import evaluations_per_state
from flowrl.models import AutoModel, LoRA
from flowrl.testing import check_field


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory):
    """Each of the four, saved once."""
    return CASES[request.param].saved(tmp_path_factory.mktemp(request.param))


def test_the_adapter_is_found_by_the_pipelines_class(case):
    assert isinstance(AutoModel(path=str(case.folder)), case.adapter)


def test_without_guidance_the_ode_sample_is_the_pipelines_to_1e_5(case):
    model = case.load()
    noise = standard_noise(model, 3)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), case.draw(case.load_pipeline(), noise), atol=1e-5, rtol=0)
    assert evaluations_per_state(model.field()) == 1


@pytest.mark.parametrize("negative", ["", "green circle"])
def test_with_guidance_the_ode_sample_is_the_pipelines_to_1e_5(case, negative):
    model, pipeline = case.load(guidance_scale=4.0, negative_prompt=negative), case.load_pipeline()
    noise = standard_noise(model, 3)
    expected = case.draw(pipeline, noise, guidance=4.0, negative=negative)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-5, rtol=0)
    assert (expected - case.draw(pipeline, noise)).abs().max() > 5e-3
    assert evaluations_per_state(model.field()) == 2


def test_a_picture_of_another_size_is_the_pipelines_to_1e_5(case):
    model = case.load(height=2 * case.pixels, width=case.pixels, guidance_scale=4.0)
    noise = standard_noise(model, 3)
    assert noise.shape[-2:] == (2 * case.pixels // case.factor, case.pixels // case.factor)
    expected = case.draw(case.load_pipeline(), noise, guidance=4.0)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-5, rtol=0)


def test_decoded_pictures_are_those_of_the_pipeline_to_1e_5(case):
    model = case.load(decode_batch=2)
    noise = standard_noise(model, 3)
    pictures = model.decode(ode_samples(model, PROMPTS, noise))
    assert pictures.shape == (3, 3, case.pixels, case.pixels)
    torch.testing.assert_close(pictures, case.draw(case.load_pipeline(), noise, output_type="pt"), atol=1e-5, rtol=0)
    assert pictures.std() > 0.01


def test_default_times_are_the_grid_that_the_pipeline_used(case):
    model, pipeline = case.load(), case.load_pipeline()
    case.draw(pipeline, standard_noise(model, 3))
    torch.testing.assert_close(model.default_times(4), pipeline.scheduler.sigmas, atol=1e-7, rtol=0)
    assert torch.equal(model.default_times(4)[[0, -1]], torch.tensor([1.0, 0.0]))


def test_prompts_of_different_lengths_do_not_touch_each_other(case):
    model = case.load(guidance_scale=2.0)
    noise, field = standard_noise(model, 3), model.field()
    together = field(noise, 0.7, model.encode(PROMPTS))
    alone = torch.cat([field(noise[[row]], 0.7, model.encode([PROMPTS[row]])) for row in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert len(model.encode(PROMPTS).tensors["prompt_mask"].sum(dim=1).unique()) == 3
    assert field(noise[[0, 0, 0]], 0.7, model.encode(PROMPTS)).std(dim=0).max() > 1e-4


def test_the_network_sees_no_padding_beyond_the_longest_prompt(case):
    model, seen = case.load(), []
    model.module.register_forward_pre_hook(lambda _, arguments, named: seen.append((arguments, named)), with_kwargs=True)
    condition = model.encode(PROMPTS[:2])
    model.field()(standard_noise(model, 2), 0.7, condition)
    lengths = condition.tensors["prompt_mask"].sum(dim=1).tolist()
    assert max(lengths) < case.fields["max_sequence_length"] == condition.tensors["prompt_embeds"].shape[1]
    arguments, named = seen[0]
    if case.name == "z_image":
        assert [len(row) for row in arguments[2]] == lengths
    else:
        assert named["encoder_hidden_states"].shape[1] == max(lengths)


def test_different_times_in_one_batch_are_those_of_separate_calls(case):
    model = case.load(guidance_scale=2.0)
    noise, field, condition, times = standard_noise(model, 3), model.field(), model.encode(PROMPTS), torch.tensor([0.9, 0.5, 0.1])
    alone = torch.cat([field(noise[[row]], float(times[row]), condition[[row]]) for row in range(3)])
    torch.testing.assert_close(field(noise, times, condition), alone, atol=1e-5, rtol=0)


def test_the_guided_field_keeps_the_contract_of_a_field(case):
    model = case.load(guidance_scale=2.0)
    check_field(model.field(), standard_noise(model, 3), model.encode(PROMPTS))


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2)], ids=["full", "lora"])
def test_in_bfloat16_velocities_are_float32_and_near_those_of_float32(case, lora):
    model, exact = case.load(lora=lora, dtype="bfloat16"), case.load(lora=lora)
    noise = standard_noise(model, 3)
    velocity, expected = (m.field()(noise, torch.tensor([0.875, 0.5, 0.25]), m.encode(PROMPTS)) for m in (model, exact))
    assert velocity.dtype == torch.float32
    assert 0 < (velocity - expected).abs().max() < 0.1 * expected.std() + 0.05


def test_gradient_checkpointing_changes_no_gradient(case):
    gradients = []
    for checkpointing in (False, True):
        model = case.load(lora=LoRA(rank=2, alpha=2), gradient_checkpointing=checkpointing)
        model.field()(standard_noise(model, 3), 0.7, model.encode(PROMPTS)).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.trainable_parameters()])
    assert len(gradients[0]) > 10
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)


def test_a_guided_field_needs_no_text_encoder_after_the_prompts_were_prepared(case):
    model, kept = (
        case.load(guidance_scale=2.0, negative_prompt="cat", text_encoders="drop"),
        case.load(guidance_scale=2.0, negative_prompt="cat"),
    )
    model.prepare(PROMPTS)
    assert model.pipeline.text_encoder is None
    noise = standard_noise(model, 3)
    velocity, expected = (m.field()(noise, 0.7, m.encode(PROMPTS)) for m in (model, kept))
    assert torch.equal(velocity, expected)


def test_two_updates_with_a_lora_and_with_all_weights_leave_what_diffusers_loads(case, tmp_path):
    draw = partial(case.draw, guidance=2.0, negative="cat")
    source = case.source(guidance_scale=2.0, negative_prompt="cat")
    check_training(source, tmp_path, PROMPTS[:2], draw, load_pipeline=case.load_pipeline)
