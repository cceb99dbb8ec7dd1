"""What is FLUX.1's own: guidance as an input of the network, the shift by a picture's size, tokens and their places."""

import math

import pytest
import torch
from flux_cases import Case, draw_flux1, flux1
from harness import ode_samples, standard_noise

from flowrl.errors import ConfigError
from flowrl.models import Flux1
from flowrl.models.flux import grid_positions
from flowrl.models.packing import pack, unpack
from flowrl.models.tiny.flux import tiny_flux1


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """FLUX.1 [dev] in small."""
    return flux1(tmp_path_factory.mktemp("dev"))


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    """FLUX.1 [schnell] in small."""
    folder = tmp_path_factory.mktemp("schnell")
    tiny_flux1(schnell=True).save_pretrained(folder)
    fixed = {"max_sequence_length": 8}
    return Case(folder=folder, adapter=Flux1, prompts=["red", "a green house"], fixed=fixed, draw=draw_flux1, pipeline="FluxPipeline")


def test_embedded_guidance_is_what_the_pipeline_calls_guidance_scale(dev):
    model = dev.load(embedded_guidance=1.5)
    noise = standard_noise(model, 3)
    expected = dev.drawn(noise, guidance_scale=1.5)
    torch.testing.assert_close(ode_samples(model, dev.prompts, noise), expected, atol=1e-5, rtol=0)
    assert (expected - dev.drawn(noise, guidance_scale=3.5)).abs().max() > 1e-3


def test_both_kinds_of_guidance_at_once_are_those_of_the_pipeline(dev):
    model = dev.load(embedded_guidance=2.0, guidance_scale=4.0, negative_prompt="blue")
    noise = standard_noise(model, 3)
    expected = dev.drawn(noise, guidance_scale=2.0, true_cfg_scale=4.0, negative_prompt=["blue"] * 3)
    torch.testing.assert_close(ode_samples(model, dev.prompts, noise), expected, atol=1e-5, rtol=0)


def test_schnell_has_no_guidance_input_and_an_unshifted_grid(schnell):
    models = [schnell.load(embedded_guidance=scale) for scale in (0.0, 3.5)]
    noise = standard_noise(models[0], 2)
    first, second = (ode_samples(model, schnell.prompts, noise) for model in models)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, schnell.drawn(noise, guidance_scale=0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(models[0].default_times(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40)])
def test_the_shift_grows_with_the_number_of_tokens(dev, height, width):
    tokens = height * width / 16  # a token is 4 x 4 pixels
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    expected = [math.exp(mu) * t / (1 + (math.exp(mu) - 1) * t) for t in (1, 0.75, 0.5, 0.25, 0)]
    assert dev.load(height=height, width=width).default_times(4).tolist() == pytest.approx(expected, abs=1e-6)


def test_tokens_hold_the_patches_row_by_row_and_their_positions_say_where():
    latent = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)  # channel c, row r, column k holds 24 c + 6 r + k
    tokens = pack(latent)
    assert tokens.shape == (1, 6, 8)
    assert tokens[0, 4].tolist() == [14, 15, 20, 21, 38, 39, 44, 45]  # second row of patches, second of three
    assert torch.equal(unpack(tokens, 4, 6), latent)
    assert grid_positions((1, 2), 2, 3, device=torch.device("cpu"))[4].tolist() == [1, 1, 1]
    assert grid_positions(1, 2, 3, device=torch.device("cpu"))[[0, 1, 3]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_sequence_length": 0}, r"max_sequence_length must be in 1\.\.512, got 0"),
        ({"max_sequence_length": 513}, r"max_sequence_length must be in 1\.\.512, got 513"),
        ({"embedded_guidance": float("nan")}, "embedded_guidance must be >= 0, got nan; FLUX.1 .dev. is usually sampled with 3.5"),
        ({"guidance_scale": 0.0}, "guidance_scale must be >= 1, got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Flux1(path="a/b", **fields)


def test_a_size_that_cuts_a_token_is_refused(dev):
    with pytest.raises(ConfigError, match=r"height and width must be multiples of 4 for .*, got 16 x 18"):
        dev.load(width=18)
