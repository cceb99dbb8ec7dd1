"""FLUX.1 Kontext: pictures edited by a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from flowrl.errors import ConfigError
from flowrl.flow import ClassifierFreeGuidance
from flowrl.models.flux import Flux1, Flux1Model, grid_positions
from flowrl.models.negatives import InstructedModel
from flowrl.models.packing import pack, unpack
from flowrl.models.pipeline import DiffusersModel
from flowrl.rl import facts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from flowrl.flow import Condition, VelocityField

__all__ = ["Flux1Kontext", "Flux1KontextModel"]

_PICTURE = "image_tokens"


class Flux1KontextModel(InstructedModel, Flux1Model):
    """A ``FluxKontextPipeline`` as an image model (arXiv:2506.15742): the picture to edit is a second sequence of image tokens.

    A prompt's fact ``image`` is that picture's file, see :class:`flowrl.rl.Prompt`. It is a part of the condition: encoded once with
    the text, the same under guidance's negative prompt.
    """

    source: Flux1Kontext

    def encode_prompts(self, prompts: list[str]) -> Mapping[str, Tensor]:
        """The texts' embeddings as for FLUX.1, and ``image_tokens`` (batch, token, channel): the packed latents of the pictures to edit.

        Raises:
            ValueError: If a prompt names no picture, or its file cannot be read.
        """
        return {**Flux1Model.encode_texts(self, prompts), _PICTURE: torch.cat([self._picture_tokens(prompt) for prompt in prompts])}

    def encode_negatives(self, prompts: list[str]) -> Mapping[str, Tensor]:
        """The same without pictures, which :meth:`guided` takes from the rows that it guides."""
        factor, channels = self.pipeline.vae_scale_factor, self.pipeline.vae.config.latent_channels
        height, width = self.source.image_size(self.pipeline)
        nothing = torch.zeros(len(prompts), channels, height // factor, width // factor, device=self.device)
        return {**Flux1Model.encode_texts(self, prompts), _PICTURE: pack(nothing)}

    def guided(self, network: VelocityField) -> VelocityField:
        """Classifier-free guidance in the text alone."""
        negative = self.encode([self.negative_prompt])
        return ClassifierFreeGuidance(field=network, scale=self.source.guidance_scale, negative=negative, shared=(_PICTURE,))

    def predict(self, module: nn.Module, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """See :meth:`DiffusersModel.predict`."""
        drawn, given = pack(x_t), condition.tensors[_PICTURE]
        height, width = self.source.image_size(self.pipeline)
        cell = self.source.pixels_per_token(self.pipeline)
        seen = grid_positions((1, 2), height // cell, width // cell, device=x_t.device)
        tokens, positions = torch.cat([drawn, given], dim=1), torch.cat([self.positions(x_t.device), seen])
        velocity = self.call_on_tokens(module, tokens, positions, timestep, condition)[:, : drawn.shape[1]]
        return unpack(velocity, x_t.shape[-2], x_t.shape[-1])

    def _picture_tokens(self, prompt: str) -> Tensor:
        vae, processor = self.pipeline.vae, self.pipeline.image_processor
        height, width = self.source.image_size(self.pipeline)
        pixels = processor.preprocess(processor.resize(_picture(prompt), height, width), height, width)
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return pack((latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor).to(self.device)


def _picture(prompt: str) -> Any:
    from PIL import Image, ImageOps

    file = facts_of(prompt).get("image")
    if not isinstance(file, str):
        raise ValueError(
            f"the prompt {str(prompt)!r} names no picture to edit; write prompts for FLUX.1 Kontext into a .jsonl file, one "
            '{"prompt": "make it night", "image": "house.png"} a line'
        )
    try:
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except OSError as error:
        raise ValueError(f"cannot read the picture {file} of the prompt {str(prompt)!r}: {error}; give a picture file") from error


@dataclass(frozen=True, kw_only=True)
class Flux1Kontext(Flux1):
    """A FLUX.1 Kontext pipeline to load; see :class:`Flux1` for the other fields.

    Every prompt needs the fact ``image``, a picture's file. All pictures to edit are resized to one size, so that prompts fit into one
    batch; that is what diffusers' pipeline does with ``_auto_resize=False``. It was trained on about a megapixel.

    >>> Flux1Kontext(path="black-forest-labs/FLUX.1-Kontext-dev", height=512, width=512, embedded_guidance=2.5).image_height is None
    True

    Attributes:
        image_height: Of the pictures to edit in pixels; None is that of the pictures drawn.
        image_width: Likewise.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str] = "FluxKontextPipeline"
    model: ClassVar[type[DiffusersModel]] = Flux1KontextModel
    encodes_with: ClassVar[tuple[str, ...]] = ("vae",)

    image_height: int | None = None
    image_width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_height", "image_width"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}; leave it out for the size of the pictures drawn")

    def load(self, device: torch.device | str) -> Flux1KontextModel:
        """See :meth:`DiffusersSource.load`."""
        return super().load(device)  # type: ignore[return-value]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse a prompt without a picture before anything is loaded.

        Raises:
            ValueError: If a prompt names no picture, or its file cannot be read.
        """
        for prompt in prompts:
            _picture(prompt)

    def image_size(self, pipeline: Any) -> tuple[int, int]:
        """Height and width in pixels to which pictures to edit are resized."""
        return self.image_height or self.height_of(pipeline), self.image_width or self.width_of(pipeline)

    def check_size(self, pipeline: Any) -> None:
        """Refuse a size of drawn or edited pictures that does not divide into tokens."""
        super().check_size(pipeline)
        step, size = self.pixels_per_token(pipeline), self.image_size(pipeline)
        if any(side % step for side in size):
            raise ConfigError(f"image_height and image_width must be multiples of {step} for {self.path}, got {size[0]} x {size[1]}")
