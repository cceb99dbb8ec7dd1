"""Adapters: one diffusers pipeline a file, each a text-conditioned velocity field with a way in (prompts) and a way out (pictures)."""

from flowrl.models.auto import AutoModel
from flowrl.models.base import ImageModel, ModelSource
from flowrl.models.cache import PromptCache
from flowrl.models.flux import Flux1, Flux1Model
from flowrl.models.flux2_klein import Flux2Klein, Flux2KleinModel
from flowrl.models.flux_kontext import Flux1Kontext, Flux1KontextModel
from flowrl.models.lora import LoRA
from flowrl.models.pipeline import DiffusersModel, NetworkField
from flowrl.models.sd import StableDiffusion, StableDiffusionModel
from flowrl.models.sd3 import SD3Model, StableDiffusion3
from flowrl.models.sdxl import StableDiffusionXL, StableDiffusionXLModel
from flowrl.models.source import ADAPTERS, DiffusersSource
from flowrl.models.tiny import TinySD3, init_for_small_training, tiny_sd3_pipeline
from flowrl.models.weights import LORA_FILE

__all__ = [
    "ADAPTERS",
    "LORA_FILE",
    "AutoModel",
    "DiffusersModel",
    "DiffusersSource",
    "Flux1",
    "Flux1Kontext",
    "Flux1KontextModel",
    "Flux1Model",
    "Flux2Klein",
    "Flux2KleinModel",
    "ImageModel",
    "LoRA",
    "ModelSource",
    "NetworkField",
    "PromptCache",
    "SD3Model",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionModel",
    "StableDiffusionXL",
    "StableDiffusionXLModel",
    "TinySD3",
    "init_for_small_training",
    "tiny_sd3_pipeline",
]
