"""Small pipelines built from nothing: every part is the real diffusers or transformers class, only small, with random weights.

``python -m flowrl.models.tiny NAME FOLDER`` writes one of them to a folder, so that every adapter can be tried offline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowrl.models.tiny.sd3 import TinySD3, init_for_small_training, tiny_sd3_pipeline
from flowrl.models.tiny.texts import WORDS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TINY", "TinySD3", "init_for_small_training", "tiny_sd3_pipeline"]

TINY: dict[str, Callable[[], Any]] = {
    "sd3": TinySD3(vocabulary=WORDS, image_size=16, vae_channels=(8, 16), shift=3.0).build,
}
"""Name to a function that makes a small random pipeline; its ``save_pretrained`` writes what the adapter of its class loads."""
