"""Adapters: one diffusers pipeline a file, each a text-conditioned velocity field with a way in (prompts) and a way out (pictures)."""

from flowrl.models.auto import AutoModel
from flowrl.models.base import ImageModel, ModelSource
from flowrl.models.cache import PromptCache
from flowrl.models.flux import Flux1, Flux1Model
from flowrl.models.flux2_klein import Flux2Klein, Flux2KleinModel
from flowrl.models.flux_kontext import Flux1Kontext, Flux1KontextModel
from flowrl.models.lora import LoRA
from flowrl.models.lumina2 import Lumina2, Lumina2Model
from flowrl.models.pipeline import DiffusersModel, NetworkField
from flowrl.models.qwen_image import QwenImage, QwenImageModel
from flowrl.models.sana import Sana, SanaModel
from flowrl.models.sd import StableDiffusion, StableDiffusionModel
from flowrl.models.sd3 import SD3Model, StableDiffusion3
from flowrl.models.sdxl import StableDiffusionXL, StableDiffusionXLModel
from flowrl.models.source import ADAPTERS, DiffusersSource
from flowrl.models.tail_cache import FeatureCache, FirstBlockCache, TaylorSeerCache
from flowrl.models.tiny import TinySD3, init_for_small_training, tiny_sd3_pipeline
from flowrl.models.wan import Wan, WanModel
from flowrl.models.weights import LORA_FILE
from flowrl.models.z_image import ZImage, ZImageModel

__all__ = [
    "ADAPTERS",
    "LORA_FILE",
    "AutoModel",
    "DiffusersModel",
    "DiffusersSource",
    "FeatureCache",
    "FirstBlockCache",
    "Flux1",
    "Flux1Kontext",
    "Flux1KontextModel",
    "Flux1Model",
    "Flux2Klein",
    "Flux2KleinModel",
    "ImageModel",
    "LoRA",
    "Lumina2",
    "Lumina2Model",
    "ModelSource",
    "NetworkField",
    "PromptCache",
    "QwenImage",
    "QwenImageModel",
    "SD3Model",
    "Sana",
    "SanaModel",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionModel",
    "StableDiffusionXL",
    "StableDiffusionXLModel",
    "TaylorSeerCache",
    "TinySD3",
    "Wan",
    "WanModel",
    "ZImage",
    "ZImageModel",
    "init_for_small_training",
    "tiny_sd3_pipeline",
]
