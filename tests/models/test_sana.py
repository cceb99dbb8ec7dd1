"""What is Sana's own: the instruction before prompts, and the second-order solver of the published pipelines."""

import inspect
from dataclasses import replace

import pytest
import torch
from harness import ode_samples, standard_noise
from masked_cases import CASES, PROMPTS

from flowrl.errors import ConfigError
from flowrl.models import Sana
from flowrl.models.tiny.sana import tiny_sana
from samplers import DPMSolverPP2M, ExplicitGrid, ODESampler


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return CASES["sana"].saved(tmp_path_factory.mktemp("sana"))


@pytest.fixture(scope="module")
def dpm_case(tmp_path_factory):
    """With the scheduler settings of the published pipelines."""
    from diffusers import DPMSolverMultistepScheduler

    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    folder = tmp_path_factory.mktemp("sana_dpm")
    tiny_sana(scheduler=DPMSolverMultistepScheduler(**settings)).save_pretrained(folder)
    return replace(CASES["sana"], folder=folder)


def test_the_pipelines_own_instruction_is_the_default(case):
    model, pipeline = case.load(instruction=None, guidance_scale=4.0), case.load_pipeline()
    instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    assert len(instruction) > 5
    noise = standard_noise(model, 3)
    expected = case.draw(pipeline, noise, guidance=4.0, complex_human_instruction=instruction)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-5, rtol=0)
    short = case.draw(pipeline, noise, guidance=4.0)
    assert (expected - short).abs().max() > 1e-3


def test_without_an_instruction_the_sample_is_the_pipelines_without_one(case):
    model = case.load(instruction=())
    noise = standard_noise(model, 3)
    expected = case.draw(case.load_pipeline(), noise, complex_human_instruction=None)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-5, rtol=0)


def test_prompts_are_read_after_the_instruction_and_negative_prompts_without_it(case):
    instructed, bare = (case.load(guidance_scale=2.0, negative_prompt="cat", instruction=lines) for lines in (("a red house on",), ()))
    prompt, negative = (model.encode(["cat"]).tensors["prompt_embeds"] for model in (instructed, bare))
    assert (prompt - negative).abs().max() > 0.1
    for model in (instructed, bare):
        embeds = model.encode([model.negative_prompt]).tensors["prompt_embeds"]
        torch.testing.assert_close(embeds, negative, atol=1e-6, rtol=0)


def test_prompts_and_negative_prompts_may_be_encoded_in_one_batch(case):
    together, alone = case.load(negative_prompt="cat", encode_batch=4), case.load(negative_prompt="cat")
    texts = ["cat", together.negative_prompt, "red square"]
    for name, expected in alone.encode(texts).tensors.items():
        torch.testing.assert_close(together.encode(texts).tensors[name], expected, atol=1e-6, rtol=0)
    assert (expected[0] != expected[1]).any()


@pytest.mark.parametrize("steps", [6, 20])
def test_dpm_solver_on_the_pipelines_grid_gives_its_sample_to_1e_5(dpm_case, steps):
    model, pipeline = dpm_case.load(guidance_scale=4.0), dpm_case.load_pipeline()
    times, noise = model.default_times(steps), standard_noise(model, 3)
    expected = dpm_case.draw(pipeline, noise, guidance=4.0, num_inference_steps=steps)
    torch.testing.assert_close(times, pipeline.scheduler.sigmas, atol=0, rtol=0)
    assert 0.999 < times[0] < 1
    sampler = ODESampler(grid=ExplicitGrid(values=tuple(times.tolist())), solver=DPMSolverPP2M())
    sample = sampler.sample(model.field(), noise, model.encode(PROMPTS)).final
    torch.testing.assert_close(sample, expected, atol=1e-5, rtol=0)
    assert (ode_samples(model, PROMPTS, noise, steps) - expected).abs().max() > 1e-2


def test_a_network_that_also_predicts_a_variance_gives_the_velocity_alone(case):
    model = case.load()
    noise, condition = standard_noise(model, 2), model.encode(PROMPTS[:2])
    velocity = model.field()(noise, 0.7, condition)

    class Learned(torch.nn.Module):
        def forward(self, **arguments):
            (out,) = model.module(**arguments)
            return (torch.cat([out, torch.full_like(out, 9.0)], dim=1),)

    assert torch.equal(model.field(Learned())(noise, 0.7, condition), velocity)


def test_the_networks_own_size_is_the_default(case):
    assert Sana(path=str(case.folder)).load("cpu").state_shape == (4, 4, 4)


def test_a_size_that_does_not_divide_into_latent_pixels_is_refused(case):
    with pytest.raises(ConfigError, match=r"height and width must be multiples of 8 .* got 36 x 32"):
        case.load(height=36)


def test_a_prompt_of_less_than_two_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"max_sequence_length must be at least 2, got 1; Sana's own is 300"):
        Sana(path="x", max_sequence_length=1)
