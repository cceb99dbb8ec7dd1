"""What is FLUX.2 klein's own: distilled models, a shift by tokens and steps, standardised latents, layers of the text encoder."""

import math

import pytest
import torch
from flux_cases import draw_klein, flux2_klein
from harness import ode_samples, standard_noise

from flowrl.errors import ConfigError
from flowrl.models import Flux2Klein, LoRA
from flowrl.models.tiny.flux import tiny_flux2_klein


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """FLUX.2 [klein] base in small."""
    return flux2_klein(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """The same weights, said to be distilled."""
    folder = tmp_path_factory.mktemp("distilled")
    tiny_flux2_klein(distilled=True).save_pretrained(folder)
    return folder


def test_a_distilled_model_draws_without_guidance_whatever_the_pipeline_is_told(base, distilled):
    model = Flux2Klein(path=str(distilled), height=16, width=16, max_sequence_length=24).load("cpu")
    noise = standard_noise(model, 3)
    pipeline = type(base.load_pipeline()).from_pretrained(distilled)
    pipeline.set_progress_bar_config(disable=True)
    expected = draw_klein(pipeline, noise, prompts=base.prompts, max_sequence_length=24, guidance_scale=4.0)
    torch.testing.assert_close(ode_samples(model, base.prompts, noise), expected, atol=1e-5, rtol=0)


def test_guidance_of_a_distilled_model_is_refused_before_anything_is_loaded(distilled):
    with pytest.raises(ConfigError, match=r"is distilled, .* got guidance_scale 4\.0; leave it at 1, or use a base one"):
        Flux2Klein(path=str(distilled), guidance_scale=4.0).load("cpu")


@pytest.mark.parametrize(("size", "steps"), [(16, 4), (16, 50), (40, 4)])
def test_the_shift_follows_tokens_and_steps(base, size, steps):
    """mu is linear in the steps between a line over tokens for 10 steps and one for 200."""
    tokens = size * size / 16
    at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    mu = at_10 + (at_200 - at_10) * (steps - 10) / 190
    times = base.load(height=size, width=size).default_times(steps)
    t = 1 - 1 / steps
    assert times[1].item() == pytest.approx(math.exp(mu) * t / (1 + (math.exp(mu) - 1) * t), abs=1e-6)


def test_a_state_is_a_latent_standardised_by_the_decoders_batch_statistics(base):
    """A state of zeros is the mean latent, channel by channel of every 2 x 2 patch."""
    model = base.load()
    mean = model.pipeline.vae.bn.running_mean.view(4, 2, 2)  # latent channel, row and column of the patch
    expected = model.pipeline.vae.decode(mean.repeat(1, 4, 4)[None], return_dict=False)[0].detach()
    torch.testing.assert_close(model.pixels(torch.zeros(1, 16, 4, 4)).detach(), expected, atol=1e-6, rtol=0)


def test_the_adapter_reaches_the_single_stream_blocks(base):
    model = base.load(lora=LoRA(rank=2))
    adapted = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("single_transformer_blocks.0.attn.to_qkv_mlp_proj") for name in adapted)
    assert any(name.startswith("transformer_blocks.0.attn.to_q") for name in adapted)


def test_text_layers_choose_what_the_network_reads(base):
    usual, other = base.load(), base.load(text_layers=(9, 0, 27))
    first, second = (model.encode(["red"]).tensors["prompt_embeds"].view(24, 3, 16) for model in (usual, other))
    assert torch.equal(first[:, [0, 2]], second[:, [0, 2]])
    assert (first[:, 1] - second[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_sequence_length": 513}, r"max_sequence_length must be in 1\.\.512, got 513"),
        ({"text_layers": ()}, r"text_layers must name at least one layer, none negative, got \(\)"),
        ({"text_layers": (9, -1)}, r"text_layers must name at least one layer, none negative, got \(9, -1\)"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Flux2Klein(path="a/b", **fields)
