"""The pipelines whose prompts have a mask, as test cases: how each is made, loaded by us, and drawn from by diffusers itself."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from harness import STEPS
from torch import Tensor

from flowrl.models import DiffusersSource, Lumina2, QwenImage, Sana, ZImage
from flowrl.models.packing import pack, unpack
from flowrl.models.tiny import TINY

PROMPTS = ["a photo of red square", "circle", "a zebra on the house?"]
INSTRUCTION = ("a photo of", "the cat:")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A small random pipeline on disk.

    Attributes:
        name: In the registry of tiny pipelines.
        adapter: Ours.
        pixels: Of its square pictures, unless told otherwise.
        factor: Pixels per latent pixel.
        fields: Of the adapter.
        call: ``(pipeline, noise, arguments, guidance_scale, negative_prompt) -> images``, all in our conventions.
        folder: Where it was saved.
    """

    name: str
    adapter: type[DiffusersSource]
    pixels: int
    factor: int
    call: Callable[[Any, Tensor, dict[str, Any], float, str], Any]
    fields: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def saved(self, folder: Path) -> "Case":
        """The same, written to a folder."""
        TINY[self.name]().save_pretrained(folder)
        return replace(self, folder=folder)

    def source(self, **fields: Any) -> DiffusersSource:
        """Our adapter of it."""
        return self.adapter(**{"path": str(self.folder), "height": self.pixels, "width": self.pixels, **self.fields, **fields})

    def load(self, **fields: Any) -> Any:
        """The adapter's model on the CPU."""
        return self.source(**fields).load("cpu")

    def load_pipeline(self, **parts: Any) -> Any:
        """The same folder as diffusers loads it."""
        pipeline = getattr(diffusers, self.adapter.pipeline_name).from_pretrained(self.folder, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def draw(self, pipeline: Any, noise: Tensor, *, guidance: float = 1.0, negative: str = "", **arguments: Any) -> Tensor:
        """The pipeline's own final latents in our state's shape, or its pictures with ``output_type="pt"``."""
        height, width = (self.factor * side for side in noise.shape[-2:])
        fixed = {"prompt": PROMPTS[: len(noise)], "height": height, "width": width, "num_inference_steps": STEPS, "output_type": "latent"}
        fixed["max_sequence_length"] = self.fields["max_sequence_length"]
        return torch.as_tensor(self.call(pipeline, noise.clone(), fixed | arguments, guidance, negative))


def _sana(pipeline: Any, noise: Tensor, arguments: dict[str, Any], scale: float, negative: str) -> Any:
    fixed = {"use_resolution_binning": False, "complex_human_instruction": list(INSTRUCTION)}
    return pipeline(**fixed | arguments, latents=noise, guidance_scale=scale, negative_prompt=negative).images


def _lumina2(pipeline: Any, noise: Tensor, arguments: dict[str, Any], scale: float, negative: str) -> Any:
    return pipeline(**arguments, latents=noise, guidance_scale=scale, negative_prompt=negative).images


def _z_image(pipeline: Any, noise: Tensor, arguments: dict[str, Any], scale: float, negative: str) -> Any:
    guidance = {"guidance_scale": scale - 1, "negative_prompt": [negative] * len(noise)}
    return pipeline(**arguments | {"prompt": list(arguments["prompt"])}, latents=noise, **guidance).images  # it overwrites its list


def _qwen_image(pipeline: Any, noise: Tensor, arguments: dict[str, Any], scale: float, negative: str) -> Any:
    guidance = {"true_cfg_scale": scale, "negative_prompt": [negative] * len(noise)} if scale > 1 else {"true_cfg_scale": 1.0}
    images = pipeline(**arguments, latents=pack(noise), **guidance).images
    return unpack(images, *noise.shape[-2:]) if arguments["output_type"] == "latent" else images


_SANA_FIELDS = {"max_sequence_length": 24, "instruction": INSTRUCTION}
CASES = {
    "sana": Case(name="sana", adapter=Sana, pixels=32, factor=8, call=_sana, fields=_SANA_FIELDS),
    "lumina2": Case(name="lumina2", adapter=Lumina2, pixels=64, factor=8, call=_lumina2, fields={"max_sequence_length": 72}),
    "z_image": Case(name="z_image", adapter=ZImage, pixels=16, factor=2, call=_z_image, fields={"max_sequence_length": 48}),
    "qwen_image": Case(name="qwen_image", adapter=QwenImage, pixels=16, factor=2, call=_qwen_image, fields={"max_sequence_length": 32}),
}
