"""What is Z-Image's own: its scale of guidance, which may be limited and may end."""

import pytest
import torch
from harness import ode_samples, standard_noise
from masked_cases import CASES, PROMPTS

from flowrl.errors import ConfigError
from flowrl.models import ZImage


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return CASES["z_image"].saved(tmp_path_factory.mktemp("z_image"))


def test_a_scale_of_1_is_diffusers_0(case):
    model, pipeline = case.load(), case.load_pipeline()
    noise = standard_noise(model, 3)
    fixed = {"height": 16, "width": 16, "num_inference_steps": 4, "max_sequence_length": 48, "output_type": "latent"}
    expected = pipeline(list(PROMPTS), latents=noise.clone(), guidance_scale=0.0, **fixed).images
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("normalization", "truncation"), [(0.9, 1.0), (1.05, 1.0), (0.0, 0.3), (0.9, 0.2)])
def test_limited_guidance_that_ends_is_the_pipelines_to_1e_5(case, normalization, truncation):
    model, pipeline = case.load(guidance_scale=5.0, normalization=normalization, truncation=truncation), case.load_pipeline()
    noise = standard_noise(model, 3)
    drawn = {"guidance": 5.0, "cfg_normalization": normalization, "cfg_truncation": truncation}
    expected = case.draw(pipeline, noise, **drawn)
    torch.testing.assert_close(ode_samples(model, PROMPTS, noise), expected, atol=1e-5, rtol=0)
    assert (expected - case.draw(pipeline, noise, guidance=5.0)).abs().max() > 1e-3


def test_guidance_acts_at_noise_levels_of_at_least_1_minus_truncation(case):
    model, rows = case.load(guidance_scale=5.0, truncation=0.25), []
    model.module.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    noise, condition, field = standard_noise(model, 1), model.encode(PROMPTS[:1]), model.field()
    for t in (1.0, 0.75, 0.7499, 0.1):
        field(noise, t, condition)
    assert rows == [2, 2, 1, 1]


def test_the_pipelines_own_size_is_the_default(case):
    assert ZImage(path=str(case.folder)).load("cpu").state_shape == (4, 512, 512)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_sequence_length", 0, "max_sequence_length must be at least 1, got 0; Z-Image's own is 512"),
        ("normalization", -1, "normalization must be >= 0, got -1; 0 is no limit"),
        ("truncation", 1.5, r"truncation must be in \(0, 1\], got 1.5"),
        ("guidance_scale", 0, "guidance_scale must be >= 1, got 0; 1 is no guidance"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        ZImage(path="x", **{field: value})
