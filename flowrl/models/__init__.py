"""Adapters: one diffusers pipeline a file, each a text-conditioned velocity field with a way in (prompts) and a way out (pictures)."""

from flowrl.models.auto import AutoModel
from flowrl.models.base import ImageModel, ModelSource
from flowrl.models.cache import PromptCache
from flowrl.models.lora import LoRA
from flowrl.models.pipeline import DiffusersModel, NetworkField
from flowrl.models.sd3 import SD3Model, StableDiffusion3
from flowrl.models.source import ADAPTERS, DiffusersSource
from flowrl.models.tiny import TinySD3, init_for_small_training, tiny_sd3_pipeline
from flowrl.models.weights import LORA_FILE

__all__ = [
    "ADAPTERS",
    "LORA_FILE",
    "AutoModel",
    "DiffusersModel",
    "DiffusersSource",
    "ImageModel",
    "LoRA",
    "ModelSource",
    "NetworkField",
    "PromptCache",
    "SD3Model",
    "StableDiffusion3",
    "TinySD3",
    "init_for_small_training",
    "tiny_sd3_pipeline",
]
