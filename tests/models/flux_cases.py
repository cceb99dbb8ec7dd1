"""The three pipelines of the FLUX family as test cases: how each is made, loaded by us, and drawn from by diffusers itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from harness import STEPS
from PIL import Image
from torch import Tensor

from flowrl.models import DiffusersSource, Flux1, Flux1Kontext, Flux2Klein
from flowrl.models.packing import pack, unpack
from flowrl.models.tiny import TINY
from flowrl.rl import Prompt, facts_of

TEXTS = ("a photo of red square", "circle", "a zebra on the house?")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A small random pipeline on disk, 16 x 16 pixels unless told otherwise."""

    folder: Path
    adapter: type[DiffusersSource]
    prompts: list[str]
    fixed: dict[str, Any]
    draw: Callable[..., Tensor]
    pipeline: str

    def source(self, **fields: Any) -> DiffusersSource:
        """Our adapter of it."""
        return self.adapter(**{"path": str(self.folder), "height": 16, "width": 16, **self.fixed, **fields})

    def load(self, **fields: Any) -> Any:
        """The adapter's model on the CPU."""
        return self.source(**fields).load("cpu")

    def load_pipeline(self, **parts: Any) -> Any:
        """The same folder as diffusers loads it."""
        pipeline = getattr(diffusers, self.pipeline).from_pretrained(self.folder, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def drawn(self, noise: Tensor, **arguments: Any) -> Tensor:
        """The pipeline's own final latents in our state's shape, or its pictures with ``output_type="pt"``."""
        return self.draw(self.load_pipeline(), noise, prompts=self.prompts, **self.fixed, **arguments)


def flux1(folder: Path) -> Case:
    """FLUX.1 [dev]."""
    return Case(
        folder=_saved("flux1", folder),
        adapter=Flux1,
        prompts=list(TEXTS),
        fixed={"max_sequence_length": 12},
        draw=draw_flux1,
        pipeline="FluxPipeline",
    )


def flux1_kontext(folder: Path) -> Case:
    """FLUX.1 Kontext, with a picture of another size than the drawn ones for each prompt."""
    prompts = []
    for seed, text in enumerate(TEXTS):
        file = folder / f"{seed}.png"
        pixels = torch.randint(0, 256, (20, 28, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(file)
        prompts.append(Prompt(text, facts={"image": str(file)}))
    return Case(
        folder=_saved("flux1_kontext", folder),
        adapter=Flux1Kontext,
        prompts=prompts,
        fixed={"max_sequence_length": 12},
        draw=draw_kontext,
        pipeline="FluxKontextPipeline",
    )


def flux2_klein(folder: Path) -> Case:
    """FLUX.2 [klein] base."""
    return Case(
        folder=_saved("flux2_klein", folder),
        adapter=Flux2Klein,
        prompts=list(TEXTS),
        fixed={"max_sequence_length": 24},
        draw=draw_klein,
        pipeline="Flux2KleinPipeline",
    )


CASES = {"flux1": flux1, "flux1_kontext": flux1_kontext, "flux2_klein": flux2_klein}


def draw_flux1(pipeline: Any, noise: Tensor, *, prompts: list[str], **arguments: Any) -> Tensor:
    """As diffusers draws from packed noise; ``height`` and ``width`` follow from it."""
    height, width = (2 * side for side in noise.shape[-2:])
    fixed = {"height": height, "width": width, "num_inference_steps": STEPS, "latents": pack(noise), "output_type": "latent"}
    images = pipeline(prompt=prompts, **{**fixed, **arguments}).images
    return unpack(images, *noise.shape[-2:]) if arguments.get("output_type", "latent") == "latent" else images


def draw_kontext(pipeline: Any, noise: Tensor, *, prompts: list[str], size: tuple[int, int] | None = None, **arguments: Any) -> Tensor:
    """Likewise; pictures to edit are resized to ``(height, width)`` beforehand, and the pipeline is told to leave all sizes alone."""
    height, width = (2 * side for side in noise.shape[-2:])
    rows, columns = size or (height, width)
    pictures = [Image.open(facts_of(prompt)["image"]).resize((columns, rows), Image.Resampling.LANCZOS) for prompt in prompts]
    return draw_flux1(pipeline, noise, prompts=prompts, image=pictures, max_area=height * width, _auto_resize=False, **arguments)


def draw_klein(pipeline: Any, noise: Tensor, *, prompts: list[str], **arguments: Any) -> Tensor:
    """As diffusers draws; the latents are taken from its last step, before it undoes their normalisation."""
    last = {}

    def keep(_pipeline: Any, _step: int, _timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        last.update(tensors)
        return tensors

    height, width = (4 * side for side in noise.shape[-2:])
    fixed = {"height": height, "width": width, "num_inference_steps": STEPS, "latents": noise, "output_type": "latent"}
    images = pipeline(prompt=prompts, callback_on_step_end=keep, **{"guidance_scale": 1.0, **fixed, **arguments}).images
    return images if "output_type" in arguments else unpack(last["latents"], *noise.shape[-2:], 1)


def _saved(name: str, folder: Path) -> Path:
    TINY[name]().save_pretrained(folder)
    return folder
