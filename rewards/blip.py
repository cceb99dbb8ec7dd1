"""The BLIP encoder pair of ImageReward (arXiv:2201.12086), from its authors' checkpoint into transformers' BLIP.

A vision transformer reads the picture; BERT with cross attention reads the prompt and the picture's tokens together. The published
network keeps timm's names for the first; its layer norms have epsilon 1e-6, transformers' default is 1e-5.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.errors import RewardError
from rewards.weights import transformers_module

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Blip"]

HEAD_WIDTH = 64  # channels of an attention head, in both towers
_VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_BLOCK = re.compile(r"blocks\.(?P<index>\d+)\.(?P<name>.+)\.(?P<kind>weight|bias)")
_BLOCK_NAMES = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection"}
_BLOCK_NAMES |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


class Blip(nn.Module):
    """The two towers.

    Attributes:
        size: Side of the pictures that it sees, pixels.
        words: Tokens that it knows.
    """

    def __init__(self, vision: nn.Module, text: nn.Module, size: int, words: int) -> None:
        super().__init__()
        self.vision, self.text, self.size, self.words = vision, text, size, words

    @staticmethod
    def of_state(state: Mapping[str, Tensor]) -> Blip:
        """Load ``visual_encoder.…`` and ``text_encoder.…``; the projections of BLIP's pretraining are left out.

        Raises:
            RewardError: If tensors are missing or have other shapes.
        """
        from transformers import BlipTextModel, BlipVisionModel

        vision, text = _tower(state, "visual_encoder."), _tower(state, "text_encoder.")
        sizes = _vision_settings(vision)
        seeing = transformers_module(BlipVisionModel, _config("BlipVisionConfig", sizes), _vision_tensors(vision))
        settings = _text_settings(text) | {"encoder_hidden_size": sizes["hidden_size"]}
        reading = transformers_module(BlipTextModel, _config("BlipTextConfig", settings), text, add_pooling_layer=False)
        return Blip(seeing, reading, sizes["image_size"], settings["vocab_size"])

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """What the first token knows of prompt and picture after the last layer, (batch, channel).

        Args:
            pixels: Preprocessed pictures (batch, 3, size, size).
            tokens: (batch, token).
            mask: (batch, token), 0 where there is only padding.
        """
        seen = self.vision(pixel_values=pixels).last_hidden_state
        everything = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        read = self.text(
            input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=everything, is_decoder=False
        )
        return read.last_hidden_state[:, 0]


def _tower(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    tower = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    wanted = "pos_embed" if prefix == "visual_encoder." else "embeddings.word_embeddings.weight"
    if wanted not in tower:
        raise RewardError(f"this is not a BLIP checkpoint: it has no {prefix}{wanted}")
    return {name: tensor for name, tensor in tower.items() if name != "embeddings.position_ids"}


def _config(name: str, settings: Mapping[str, Any]) -> Any:
    import transformers

    return getattr(transformers, name)(**settings)


def _vision_settings(tower: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = tower["patch_embed.proj.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": len(tower["blocks.0.mlp.fc1.bias"]),
        "num_hidden_layers": sum(name.endswith(".norm1.weight") for name in tower),
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": round((tower["pos_embed"].shape[1] - 1) ** 0.5) * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


def _text_settings(tower: Mapping[str, Tensor]) -> dict[str, Any]:
    words, width = tower["embeddings.word_embeddings.weight"].shape
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": len(tower["encoder.layer.0.intermediate.dense.bias"]),
        "num_hidden_layers": sum(name.endswith(".intermediate.dense.bias") for name in tower),
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": len(tower["embeddings.position_embeddings.weight"]),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "is_decoder": True,  # which is what gives transformers' layers their cross attention; the mask stays two-sided, see forward
        "use_cache": False,
        "bos_token_id": words - 2,
        "sep_token_id": min(102, words - 1),
        "eos_token_id": min(102, words - 1),
        "pad_token_id": 0,
    }


def _vision_tensors(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in tower.items():
        match = _BLOCK.fullmatch(name)
        if name in _VISION_NAMES:
            named[_VISION_NAMES[name]] = tensor
        elif match and match["name"] in _BLOCK_NAMES:
            named[f"encoder.layers.{match['index']}.{_BLOCK_NAMES[match['name']]}.{match['kind']}"] = tensor
    return named
