"""Two G2RPO updates of a Stable Diffusion 3 pipeline, and what diffusers makes of the saved weights."""

import torch
from harness import STEPS, check_training

from flowrl.models import AutoModel, StableDiffusion3

PROMPTS = ["a photo of red square", "green circle"]


def draw(pipeline, noise):
    fixed = {"num_inference_steps": STEPS, "latents": noise.clone(), "max_sequence_length": 3, "guidance_scale": 4.5}
    return torch.as_tensor(pipeline(PROMPTS, **fixed, output_type="latent").images)


def test_two_updates_with_a_lora_and_with_all_weights_leave_what_diffusers_loads(pipeline_folder, load_pipeline, tmp_path):
    source = AutoModel(path=str(pipeline_folder), max_sequence_length=3, guidance_scale=4.5)
    assert isinstance(source, StableDiffusion3)
    check_training(source, tmp_path, PROMPTS, draw, load_pipeline=load_pipeline)
