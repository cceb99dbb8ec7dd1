"""What holds for FLUX.1, FLUX.1 Kontext and FLUX.2 klein alike: they draw what diffusers draws, train, and are loaded again."""

from functools import partial

import pytest
import torch
from flux_cases import CASES
from harness import check_training, ode_samples, standard_noise

from flowrl.flow import evaluations_per_state
from flowrl.models import AutoModel, LoRA


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory):
    """Each of the three, saved once."""
    return CASES[request.param](tmp_path_factory.mktemp(request.param))


def guidance_of(case, scale, negative):
    """True classifier-free guidance as the pipeline takes it: klein has no negative prompt but the empty one."""
    if case.pipeline == "Flux2KleinPipeline":
        return {"guidance_scale": scale}
    return {"true_cfg_scale": scale, "negative_prompt": [negative] * len(case.prompts)}


def test_the_adapter_is_found_by_the_pipelines_class(case):
    assert isinstance(AutoModel(path=str(case.folder)), case.adapter)


def test_without_guidance_the_ode_sample_is_the_pipelines_to_1e_5(case):
    model = case.load()
    noise = standard_noise(model, 3)
    torch.testing.assert_close(ode_samples(model, case.prompts, noise), case.drawn(noise), atol=1e-5, rtol=0)
    assert evaluations_per_state(model.field()) == 1


def test_with_guidance_the_ode_sample_is_the_pipelines_to_1e_5(case):
    negative = "" if case.pipeline == "Flux2KleinPipeline" else "green circle"
    model = case.load(guidance_scale=3.0, negative_prompt=negative)
    noise = standard_noise(model, 3)
    expected = case.drawn(noise, **guidance_of(case, 3.0, negative))
    torch.testing.assert_close(ode_samples(model, case.prompts, noise), expected, atol=1e-5, rtol=0)
    assert (expected - case.drawn(noise)).abs().max() > 1e-3
    assert evaluations_per_state(model.field()) == 2


def test_a_picture_of_another_size_is_the_pipelines_to_1e_5(case):
    model = case.load(height=24, width=8)
    noise = standard_noise(model, 3)
    assert noise.shape[-2] == 3 * noise.shape[-1]
    torch.testing.assert_close(ode_samples(model, case.prompts, noise), case.drawn(noise), atol=1e-5, rtol=0)


def test_decoded_pictures_are_those_of_the_pipeline_to_1e_5(case):
    model = case.load(decode_batch=2)
    noise = standard_noise(model, 3)
    pictures = model.decode(ode_samples(model, case.prompts, noise))
    assert pictures.shape == (3, 3, 16, 16)
    torch.testing.assert_close(pictures, case.drawn(noise, output_type="pt"), atol=1e-5, rtol=0)
    assert pictures.std() > 0.01


def test_default_times_are_the_grid_that_the_pipeline_used(case):
    model, pipeline = case.load(), case.load_pipeline()
    case.draw(pipeline, standard_noise(model, 3), prompts=case.prompts, **case.fixed)
    torch.testing.assert_close(model.default_times(4), pipeline.scheduler.sigmas, atol=1e-7, rtol=0)


def test_prompts_of_different_lengths_do_not_touch_each_other(case):
    model = case.load()
    noise, field = standard_noise(model, 3), model.field()
    together = field(noise, 0.7, model.encode(case.prompts))
    alone = torch.cat([field(noise[[row]], 0.7, model.encode([case.prompts[row]])) for row in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (field(noise[[0, 0, 0]], 0.7, model.encode(case.prompts)).std(dim=0)).max() > 1e-3


def test_different_times_in_one_batch_are_those_of_separate_calls(case):
    model = case.load(guidance_scale=2.0)
    noise, field, condition, times = standard_noise(model, 3), model.field(), model.encode(case.prompts), torch.tensor([0.9, 0.5, 0.1])
    alone = torch.cat([field(noise[[row]], float(times[row]), condition[[row]]) for row in range(3)])
    torch.testing.assert_close(field(noise, times, condition), alone, atol=1e-5, rtol=0)


def test_dropped_encoders_and_a_parked_decoder_change_no_picture(case, tmp_path):
    model = case.load(guidance_scale=2.0)
    frugal = case.load(guidance_scale=2.0, text_encoders="drop", embedding_cache=str(tmp_path), decoder="offload")
    frugal.prepare(case.prompts)
    assert not any(part is not None for name, part in frugal.pipeline.components.items() if name.startswith("text_encoder"))
    noise = standard_noise(model, 3)
    expected, samples = (ode_samples(m, case.prompts, noise) for m in (model, frugal))
    assert torch.equal(expected, samples)
    assert torch.equal(model.decode(samples), frugal.decode(samples))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's RMSNorm under autocast: only slower
@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2)], ids=["full", "lora"])
def test_in_bfloat16_velocities_are_float32_and_near_those_of_float32(case, lora):
    model, exact = case.load(lora=lora, dtype="bfloat16"), case.load(lora=lora)
    noise = standard_noise(model, 3)
    velocity, expected = (m.field()(noise, torch.tensor([0.875, 0.5, 0.25]), m.encode(case.prompts)) for m in (model, exact))
    assert velocity.dtype == torch.float32
    assert 0 < (velocity - expected).abs().max() < 0.1 * expected.std() + 0.05


def test_gradient_checkpointing_changes_no_gradient(case):
    gradients = []
    for checkpointing in (False, True):
        model = case.load(lora=LoRA(rank=2, alpha=2), gradient_checkpointing=checkpointing)
        model.field()(standard_noise(model, 3), 0.7, model.encode(case.prompts)).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.trainable_parameters()])
    assert len(gradients[0]) > 10
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)


def test_two_updates_with_a_lora_and_with_all_weights_leave_what_diffusers_loads(case, tmp_path):
    draw = partial(case.draw, prompts=case.prompts, **case.fixed, **guidance_of(case, 2.0, ""))
    check_training(case.source(guidance_scale=2.0), tmp_path, case.prompts, draw, load_pipeline=case.load_pipeline)
