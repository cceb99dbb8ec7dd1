"""What a model costs in memory and time: the options that all adapters share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from flowrl.errors import ConfigError, close_match
from flowrl.models.tail_cache import FeatureCache

__all__ = ["DTYPES", "Compile", "Decoder", "Dtype", "Quantise", "ResourceOptions", "TextEncoderPlan"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Dtype = Literal["float32", "bfloat16", "float16"]
TextEncoderPlan = Literal["keep", "offload", "drop"]
Decoder = Literal["keep", "offload"]
Compile = Literal["blocks", "network"]
Quantise = Literal["nf4", "int8"]


@dataclass(frozen=True, kw_only=True)
class ResourceOptions:
    """Where the frozen parts are, in which precision and pieces they work, and how the network is run.

    None of these changes what is trained; those that only move memory may differ when a run is resumed. Their order by what they save on
    FLUX.1-dev in bfloat16: ``text_encoders`` 9.5 GB, ``gradient_checkpointing`` and ``decode_tile`` several GB that grow with the picture,
    ``decoder`` 0.3 GB.

    Attributes:
        gradient_checkpointing: Recompute activations in the backward pass: about a third more compute, far less memory.
        text_encoders: ``keep`` them on the device; ``offload`` them to the CPU between uses; or ``drop`` them once a run's prompts are
            encoded, after which other texts are refused. Offloaded and dropped ones are only read where a text is not cached.
        embedding_cache: Folder for embeddings on disk, which later runs and other processes find; None keeps them in memory alone.
        cached_prompts: Prompts whose embeddings are remembered in memory; dropped encoders without ``embedding_cache`` make it as many
            as the run has.
        encode_batch: Prompts encoded at once; see :class:`flowrl.models.cache.PromptCache` for why 1.
        decoder: ``keep`` it on the device, or ``offload`` it to the CPU between uses.
        decoder_dtype: Of the decoder's weights and arithmetic; SDXL's original decoder overflows in float16.
        decode_batch: Latents decoded at once; 1 is what diffusers calls slicing.
        decode_tile: Side in pixels of the overlapping tiles in which a larger picture is decoded; None decodes it whole. Tiles
            change the picture slightly where they are blended.
        quantise: Hold the frozen linear layers of the network's blocks in 4 bits (``nf4``, 0.52 bytes a weight; QLoRA, arXiv:2305.14314)
            or 8 (``int8``) under a LoRA, which stays float32 and loads into the unquantised pipeline; None holds them in ``dtype``.
            ``nf4`` is from the extra ``bitsandbytes``; either is tried before it is used. In one process or under DDP.
        attention: A back end of diffusers' attention, such as ``flash``, ``_flash_3`` or ``xformers``; None is PyTorch's own. It is tried
            before it is used. Names that end in ``_hub`` download a kernel.
        compile: ``torch.compile`` of the network's repeated ``blocks`` one by one, or of the whole ``network``; None runs it as it is.
        compile_backend: Of ``torch.compile``.
        tail_cache: Feature caching in the steps after the last stochastic one, which serve the reward alone; see
            :mod:`flowrl.models.tail_cache`.

    Raises:
        ConfigError: If a value is out of range, or two options do not go together.
    """

    free_on_resume: ClassVar[tuple[str, ...]] = (  # memory, not numbers: at most the rounding changes
        "gradient_checkpointing",
        "text_encoders",
        "embedding_cache",
        "cached_prompts",
        "decoder",
        "decode_batch",
    )

    gradient_checkpointing: bool = False
    text_encoders: TextEncoderPlan = "keep"
    embedding_cache: str | None = None
    cached_prompts: int = 1024
    encode_batch: int = 1
    decoder: Decoder = "keep"
    decoder_dtype: Dtype = "float32"
    decode_batch: int = 8
    decode_tile: int | None = None
    quantise: Quantise | None = None
    attention: str | None = None
    compile: Compile | None = None
    compile_backend: str = "inductor"
    tail_cache: FeatureCache | None = None

    def __post_init__(self) -> None:
        for name in ("cached_prompts", "encode_batch", "decode_batch", "decode_tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name, allowed in (
            ("text_encoders", TextEncoderPlan),
            ("decoder", Decoder),
            ("decoder_dtype", Dtype),
            ("compile", Compile),
            ("quantise", Quantise),
        ):
            value, names = getattr(self, name), get_args(allowed)
            if value is not None and value not in names:
                raise ConfigError(f"unknown {name} {value!r}{close_match(str(value), names)}")
        if self.compile is not None and self.tail_cache is not None:
            raise ConfigError("compile and tail_cache do not go together: the cache exchanges the blocks that were compiled; leave one out")
        if self.compile is not None and self.quantise is not None:
            raise ConfigError("compile and quantise do not go together: packed weights are unpacked outside of the graph; leave one out")
