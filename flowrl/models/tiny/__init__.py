"""Small pipelines built from nothing: every part is the real diffusers or transformers class, only small, with random weights.

``python -m flowrl.models.tiny NAME FOLDER`` writes one of them to a folder, so that every adapter can be tried offline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.models.tiny.flux import tiny_flux1, tiny_flux1_kontext, tiny_flux2_klein
from flowrl.models.tiny.lumina2 import tiny_lumina2
from flowrl.models.tiny.qwen_image import tiny_qwen_image
from flowrl.models.tiny.sana import tiny_sana
from flowrl.models.tiny.sd import tiny_sd, tiny_sdxl
from flowrl.models.tiny.sd3 import TinySD3, init_for_small_training, tiny_sd3_pipeline
from flowrl.models.tiny.texts import WORDS
from flowrl.models.tiny.wan import tiny_wan, tiny_wan22, tiny_wan22_5b
from flowrl.models.tiny.z_image import tiny_z_image

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "TINY",
    "TinySD3",
    "init_for_small_training",
    "tiny_sd",
    "tiny_sd3_pipeline",
    "tiny_sdxl",
    "tiny_wan",
    "tiny_wan22",
    "tiny_wan22_5b",
]

TINY: dict[str, Callable[[], Any]] = {
    "flux1": tiny_flux1,
    "flux1_kontext": tiny_flux1_kontext,
    "flux2_klein": tiny_flux2_klein,
    "lumina2": tiny_lumina2,
    "qwen_image": tiny_qwen_image,
    "sana": tiny_sana,
    "sd": tiny_sd,
    "sdxl": tiny_sdxl,
    "sd3": TinySD3(vocabulary=WORDS, image_size=16, vae_channels=(8, 16), shift=3.0, max_grid=16).build,
    "z_image": tiny_z_image,
    "wan": tiny_wan,
    "wan22": tiny_wan22,
    "wan22_5b": tiny_wan22_5b,
}
"""Name to a function that makes a small random pipeline; its ``save_pretrained`` writes what the adapter of its class loads."""
