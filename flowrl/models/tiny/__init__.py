"""Small pipelines built from nothing: every part is the real diffusers or transformers class, only small, with random weights."""

from flowrl.models.tiny.sd3 import TinySD3, init_for_small_training, tiny_sd3_pipeline

__all__ = ["TinySD3", "init_for_small_training", "tiny_sd3_pipeline"]
