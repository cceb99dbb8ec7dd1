"""What is Lumina-Image 2.0's own: its system prompt, and guidance that keeps lengths and ends."""

import pytest
import torch
from harness import ode_samples, standard_noise
from masked_cases import CASES, PROMPTS

from flowrl.errors import ConfigError
from flowrl.models import Lumina2


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return CASES["lumina2"].saved(tmp_path_factory.mktemp("lumina2"))


@pytest.mark.parametrize(("truncation", "normalization"), [(1.0, False), (0.5, True), (0.25, False)])
def test_guidance_that_ends_is_the_pipelines_where_it_ends_between_two_steps(case, truncation, normalization):
    model, pipeline = case.load(guidance_scale=4.0, truncation=truncation, normalization=normalization), case.load_pipeline()
    noise = standard_noise(model, 3)
    drawn = {"guidance": 4.0, "cfg_trunc_ratio": truncation, "cfg_normalization": normalization}
    expected = case.draw(pipeline, noise, **drawn)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-5, rtol=0)
    usual = case.draw(pipeline, noise, guidance=4.0)
    assert (expected - usual).abs().max() > 1e-4


@pytest.mark.parametrize(("truncation", "steps", "guided"), [(0.25, 8, 2), (0.5, 10, 5), (0.3, 10, 3), (0.3, 4, 2), (0.001, 4, 1)])
def test_the_guided_share_of_the_steps_is_rounded_up(case, truncation, steps, guided):
    model, rows = case.load(guidance_scale=4.0, truncation=truncation), []
    model.module.register_forward_pre_hook(lambda _, arguments, named: rows.append(len(named["hidden_states"])), with_kwargs=True)
    ode_samples(model, PROMPTS[:1], standard_noise(model, 1), steps=steps)
    assert rows == [2] * guided + [1] * (steps - guided)


def test_the_end_of_guidance_follows_a_resolution_dependent_shift(case):
    from diffusers import FlowMatchEulerDiscreteScheduler

    model = case.load(guidance_scale=4.0, truncation=0.5)
    model.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64)
    times = model.default_times(4)
    assert times[2] + 1e-6 < model.field().until < times[1]


@pytest.mark.parametrize("system", [None, "You are the cat."])
def test_prompts_are_read_after_the_system_prompt_and_negative_prompts_without_it(case, system):
    model = case.load(guidance_scale=4.0, negative_prompt="blue", system_prompt=system)
    noise = standard_noise(model, 3)
    expected = case.draw(case.load_pipeline(), noise, guidance=4.0, negative="blue", system_prompt=system)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-5, rtol=0)
    lengths = model.encode(["blue", model.negative_prompt]).tensors["prompt_mask"].sum(dim=1)
    assert lengths[0] > lengths[1] + 5
    assert lengths[1] == 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_sequence_length", 0, "max_sequence_length must be at least 1, got 0; Lumina-Image 2.0's own is 256"),
        ("truncation", 0, r"truncation must be in \(0, 1\], got 0; for no guidance use guidance_scale: 1"),
        ("truncation", float("nan"), r"truncation must be in \(0, 1\]"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        Lumina2(path="x", **{field: value})
