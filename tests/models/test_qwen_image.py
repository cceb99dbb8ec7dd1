"""What is Qwen-Image's own: guidance that keeps every token's length, a grid that ends above 0, and latents scaled per channel."""

import pytest
import torch
from harness import standard_noise
from masked_cases import CASES, PROMPTS

from flowrl.errors import ConfigError
from flowrl.models import QwenImage
from flowrl.models.packing import pack


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return CASES["qwen_image"].saved(tmp_path_factory.mktemp("qwen_image"))


def test_guided_tokens_are_as_long_as_the_conditional_ones(case):
    model, bare = case.load(guidance_scale=4.0), case.load()
    noise, condition = standard_noise(model, 3), model.encode(PROMPTS)
    guided, conditional = (pack(m.field()(noise, 0.7, condition)) for m in (model, bare))
    torch.testing.assert_close(guided.norm(dim=-1), conditional.norm(dim=-1))
    assert (guided - conditional).abs().max() > 1e-3


def test_the_last_step_starts_at_the_schedulers_terminal_noise_level(case):
    model = case.load()
    assert model.default_times(10)[-2].item() == pytest.approx(0.02, abs=1e-6)


def test_every_channel_is_decoded_at_its_own_scale(case):
    model = case.load()
    latents, vae = standard_noise(model, 2), model.pipeline.vae
    video = torch.stack([latents[:, c] * vae.config.latents_std[c] + vae.config.latents_mean[c] for c in range(4)], dim=1)[:, :, None]
    with torch.no_grad():
        expected = vae.decode(video, return_dict=False)[0][:, :, 0]
    torch.testing.assert_close(model.decode(latents), (expected / 2 + 0.5).clamp(0, 1), atol=1e-6, rtol=0)


def test_a_state_is_a_latent_and_not_its_tokens(case):
    model = case.load(height=24, width=8)
    assert model.state_shape == (4, 12, 4)
    assert model.tokens == 12


def test_a_size_that_does_not_divide_into_patches_is_refused(case):
    with pytest.raises(ConfigError, match=r"height and width must be multiples of 4 .* got 18 x 16"):
        case.load(height=18)


@pytest.mark.parametrize("length", [0, 1025])
def test_a_prompt_length_that_the_pipeline_has_not_is_refused(length):
    with pytest.raises(ConfigError, match=rf"max_sequence_length must be in 1..1024, got {length}"):
        QwenImage(path="x", max_sequence_length=length)


def test_a_prompt_that_is_too_long_is_cut_as_the_pipeline_cuts_it(case):
    long = [" ".join(PROMPTS) * 3]
    model = case.load(max_sequence_length=8)
    assert model.encode(long).tensors["prompt_mask"].all()
    expected, _ = case.load_pipeline().encode_prompt(long, max_sequence_length=8)
    torch.testing.assert_close(model.encode(long).tensors["prompt_embeds"], expected.detach(), atol=1e-6, rtol=0)


def test_a_diffusers_that_ignores_padding_is_refused(case, monkeypatch):
    from diffusers.models.transformers import transformer_qwenimage

    monkeypatch.delattr(transformer_qwenimage, "compute_text_seq_len_from_mask")
    with pytest.raises(ConfigError, match=r"ignores which tokens .* are padding; pip install 'diffusers>=0\.37'"):
        case.load()
