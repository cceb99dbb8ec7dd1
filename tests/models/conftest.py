"""A random Stable Diffusion 3 pipeline on disk, made once per session and only read."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from flowrl.models import StableDiffusion3, TinySD3

sys.path.insert(0, str(Path(__file__).parent))  # harness.py

WORDS = ("a", "photo", "of", "red", "green", "square", "circle")


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """16 x 16 pixels, VAE factor 2, scheduler shift 3, a VAE whose scaling and shift are not the identity."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline = TinySD3(vocabulary=WORDS, image_size=16, vae_channels=(8, 16), layers=2, shift=3.0, max_grid=6, qk_norm="rms_norm").build()
    pipeline.vae.register_to_config(scaling_factor=1.5, shift_factor=0.25)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def load(pipeline_folder):
    """``load(**fields)``: the model of a StableDiffusion3 with these fields, on the CPU."""
    return lambda **fields: StableDiffusion3(**{"path": str(pipeline_folder), "max_sequence_length": 3, **fields}).load("cpu")


@pytest.fixture
def load_pipeline(pipeline_folder):
    """``load_pipeline()``: the same folder as diffusers itself loads it."""

    def loader(**parts):
        from diffusers import StableDiffusion3Pipeline

        pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, text_encoder_3=None, tokenizer_3=None, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return loader


@pytest.fixture
def euler():
    """``euler(model, prompts, noise, steps)``: plain Euler over the pipeline's own grid, written out."""

    @torch.no_grad()
    def sample(model, prompts, noise, steps=4):
        times, field, condition, x = model.default_times(steps), model.field(), model.encode(prompts), noise
        for t, s in pairwise(times):
            x = x + (s - t) * field(x, t, condition)
        return x

    return sample


@pytest.fixture
def perturb():
    """``perturb(model)``: move the trained weights, as training would."""

    @torch.no_grad()
    def move(model):
        generator = torch.Generator().manual_seed(3)
        for parameter in model.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

    return move


@pytest.fixture
def noise():
    """``noise(model, rows)``: the same standard normal latents at every call."""
    return lambda model, rows: torch.randn(rows, *model.state_shape, generator=torch.Generator().manual_seed(7))
