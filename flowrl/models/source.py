"""Where a diffusers pipeline comes from, and how it is prepared for training."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError

from flowrl.errors import CheckpointError, ConfigError, close_match
from flowrl.models.decoder import tile_decoder
from flowrl.models.lora import LoRA
from flowrl.models.options import DTYPES, Dtype, ResourceOptions
from flowrl.models.parts import check_parts, pipeline_config, resolve_path
from flowrl.models.pipeline import DiffusersModel
from flowrl.models.quantise import quantise_network, try_form
from flowrl.models.speed import compile_network, use_attention

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["ADAPTERS", "DTYPES", "DiffusersSource", "pipeline_config", "resolve_path"]

ADAPTERS: dict[str, type[DiffusersSource]] = {}
"""Name of a pipeline's class, as ``model_index.json`` has it, to the adapter that reads it; an adapter joins by being defined."""

_DTYPE_NAMES = {"transformers": "dtype", "diffusers": "torch_dtype"}
"""Libraries that parts may come from, and what their ``from_pretrained`` calls a dtype."""


@dataclass(frozen=True, kw_only=True)
class DiffusersSource(ResourceOptions):
    """What the adapters of all pipelines can be told; an adapter's own class derives from this one. See also :class:`ResourceOptions`.

    An adapter names its pipeline's class in ``pipeline_name``, its :class:`DiffusersModel` in ``model``, and the pipeline's part that is
    trained in ``network`` (``unet`` instead of ``transformer``); what sampling does not need it lists in ``unused_parts``, and parts
    beside the text encoders that ``encode_texts`` needs (the decoder of a model that reads a picture) in ``encodes_with``.

    Attributes:
        path: A folder that ``save_pretrained`` wrote, ``assets/models/...`` or a hub id. Only safetensors are read.
        height: Of the pictures in pixels; None is the model's own size.
        width: Likewise.
        guidance_scale: Of classifier-free guidance, at least 1; 1 is none, and costs half.
        negative_prompt: What guidance leads away from.
        lora: The adapter to train; None trains all weights of the network.
        dtype: In which the network computes: float32, bfloat16 or float16. Trained weights are float32 all the same, and so is the
            arithmetic of sampling.

    Raises:
        ConfigError: If a value is out of range.
    """

    pipeline_name: ClassVar[str]
    model: ClassVar[type[DiffusersModel]]
    network: ClassVar[str] = "transformer"
    unused_parts: ClassVar[tuple[str, ...]] = ()
    encodes_with: ClassVar[tuple[str, ...]] = ()

    path: str
    height: int | None = None
    width: int | None = None
    guidance_scale: float = 1.0
    negative_prompt: str = ""
    lora: LoRA | None = None
    dtype: Dtype = "float32"

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "pipeline_name" in vars(cls):
            ADAPTERS[cls.pipeline_name] = cls

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.guidance_scale >= 1:
            raise ConfigError(f"guidance_scale must be >= 1, got {self.guidance_scale}; 1 is no guidance")
        if self.dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {self.dtype!r}{close_match(self.dtype, DTYPES)}")
        if self.quantise is not None and self.lora is None:
            raise ConfigError(
                f"quantise={self.quantise!r} holds frozen weights, and without a LoRA none is frozen; add `lora`, or leave it out"
            )
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which the network computes."""
        return DTYPES[self.dtype]

    @property
    def storage_dtype(self) -> torch.dtype:
        """Of the network's own weights: under a LoRA they are frozen and need no precision beyond what they compute in."""
        return torch.float32 if self.lora is None else self.compute_dtype

    def load(self, device: torch.device | str) -> Any:
        """The model on a device, in evaluation mode; only what is trained requires a gradient.

        Raises:
            CheckpointError: If the pipeline is missing, truncated, or of another class.
            ConfigError: If the picture's size or the LoRA does not fit it, or an option does not work on the device.
            MissingExtraError: If an option's library is not installed.
        """
        device = torch.device(device)
        if self.quantise is not None:
            try_form(self.quantise, dtype=self.compute_dtype, device=device)
        pipeline = self._pipeline()
        self.check_size(pipeline)
        network = getattr(pipeline, self.network)
        if self.quantise is not None:
            for part in (part for part in pipeline.components.values() if type(part) is type(network)):  # two, where experts take turns
                quantise_network(part, self.quantise, dtype=self.compute_dtype, device=device)
        if self.lora is not None:
            self.lora.attach(network)
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                part.to("cpu" if name == "vae" and self.decoder == "offload" else device).eval()
                if name != self.network or self.lora is None:
                    part.requires_grad_(requires_grad=name == self.network)
        self._apply_options(pipeline, network, device)
        return self.model(self, pipeline, device)

    def check_folder(self) -> dict[str, Any]:
        """The ``model_index.json``; it must be of this adapter's pipeline, and in a local folder all of its parts must be there.

        Raises:
            CheckpointError: If they are not.
        """
        parts, folder = pipeline_config(self.path), Path(resolve_path(self.path))
        if (name := str(parts.get("_class_name"))) != self.pipeline_name:
            fitting = ADAPTERS.get(name)
            use = f"use flowrl.models.{fitting.__name__}" if fitting else f"there are adapters for {', '.join(sorted(ADAPTERS))}"
            raise CheckpointError(f"{self.path} holds a {name}, {type(self).__name__} reads a {self.pipeline_name}; {use}")
        if folder.is_dir():
            check_parts(folder, parts, self.unused_parts)
        return parts

    def read_text_encoders(self) -> dict[str, torch.nn.Module]:
        """The text encoders alone, frozen, on the CPU, as the whole pipeline would have loaded them.

        Raises:
            CheckpointError: If they cannot be read.
        """
        parts, path = pipeline_config(self.path), resolve_path(self.path)
        read = {}
        for name in self._text_encoders(parts):
            library, class_name = parts[name]
            if library not in _DTYPE_NAMES:
                raise CheckpointError(f"{self.path} has a {name} of {library!r}; flowrl loads those of {' and '.join(_DTYPE_NAMES)}")
            dtype = {_DTYPE_NAMES[library]: self.compute_dtype}
            load = getattr(importlib.import_module(library), class_name).from_pretrained
            read[name] = self._read(load, path, subfolder=name, use_safetensors=True, **dtype).eval().requires_grad_(requires_grad=False)
        return read

    def height_of(self, pipeline: Any) -> int:
        """Pixels: what was asked for, or the pipeline's own size."""
        return self.height or pipeline.default_sample_size * pipeline.vae_scale_factor

    def width_of(self, pipeline: Any) -> int:
        """Pixels: what was asked for, or the pipeline's own size."""
        return self.width or pipeline.default_sample_size * pipeline.vae_scale_factor

    def pixels_per_latent(self, pipeline: Any) -> int:
        """Side of the square of pixels that the decoder makes of one latent pixel."""
        return pipeline.vae_scale_factor

    def pixels_per_token(self, pipeline: Any) -> int:
        """Side of the square of pixels that is one token of the network, of which height and width must be multiples."""
        return pipeline.vae_scale_factor * getattr(pipeline, self.network).config.patch_size

    def check_size(self, pipeline: Any) -> None:
        """Refuse a size that does not divide into image tokens.

        Raises:
            ConfigError: If the height or the width does not.
        """
        step = self.pixels_per_token(pipeline)
        size = self.height_of(pipeline), self.width_of(pipeline)
        if any(side % step for side in size):
            raise ConfigError(f"height and width must be multiples of {step} for {self.path}, got {size[0]} x {size[1]}")

    def original_weights(self, pipeline: Any, device: torch.device) -> dict[str, Tensor]:
        """The network's parameters as they are at ``path``, float32, on a device.

        Raises:
            CheckpointError: If they cannot be read any more.
        """
        network = type(getattr(pipeline, self.network))
        original = self._read(network.from_pretrained, resolve_path(self.path), subfolder=self.network, **_weights_in(torch.float32))
        return {name: parameter.data.to(device) for name, parameter in original.named_parameters()}

    def _apply_options(self, pipeline: Any, network: Any, device: torch.device) -> None:
        if self.decode_tile is not None:
            tile_decoder(pipeline.vae, self.decode_tile, self.pixels_per_latent(pipeline))
        if self.attention is not None:
            use_attention(network, self.attention, device=device, dtype=self.compute_dtype)
        if self.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if self.tail_cache is not None:
            with self.tail_cache.active(network):
                pass  # refused now rather than in the first rollout
        if self.compile is not None:
            compile_network(network, self.compile, self.compile_backend)

    def _text_encoders(self, parts: Mapping[str, Any]) -> list[str]:
        absent = {name for name, where in parts.items() if isinstance(where, list | tuple) and where[0] is None}
        return [name for name in parts if name.startswith("text_encoder") and name not in absent and name not in self.unused_parts]

    def _pipeline(self) -> Any:
        import diffusers

        path, parts = resolve_path(self.path), self.check_folder()
        # A part that was saved as None, such as SD3's T5, has to be named as None or diffusers calls it missing.
        absent = {part: None for part, where in parts.items() if isinstance(where, list | tuple) and where[0] is None}
        absent |= {part: None for part in self.unused_parts if part in parts}
        if self.text_encoders != "keep":  # read at their first use
            absent |= dict.fromkeys(self._text_encoders(parts))
        dtypes = {"default": self.compute_dtype, self.network: self.storage_dtype, "vae": DTYPES[self.decoder_dtype]}
        return self._read(getattr(diffusers, self.pipeline_name).from_pretrained, path, **absent, **_weights_in(dtypes))

    def _read(self, read: Any, path: str, **arguments: Any) -> Any:
        try:
            return read(path, **arguments)
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"cannot load {self.path}: {error}; it must be a {self.pipeline_name} saved whole, as safetensors"
            ) from error


def _weights_in(dtype: Any) -> dict[str, Any]:
    """Arguments of ``from_pretrained``: no pickles, and the dtype under the name that the installed diffusers has for it."""
    from diffusers.utils import deprecation_utils

    return {"use_safetensors": True, "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype": dtype}
