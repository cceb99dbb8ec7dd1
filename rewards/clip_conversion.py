"""open_clip checkpoints as transformers' CLIP: the same network under other names.

open_clip keeps the query, key and value projections of a layer in one matrix and its output projections transposed; layer norms have
epsilon 1e-5 in both. A text is read at its end token, open_clip's highest number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowrl.errors import RewardError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["CONSTANTS", "OpenClipArchitecture", "clip_settings", "converted_tensors", "open_clip_settings"]

_TOWERS = (("transformer.resblocks.", "text_model.encoder.layers."), ("visual.transformer.resblocks.", "vision_model.encoder.layers."))
_LAYER_NAMES = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_LAYER_NAMES |= {"attn.out_proj": "self_attn.out_proj"}
_OTHER_NAMES = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_TRANSPOSED = {"text_projection", "visual.proj"}
CONSTANTS = frozenset({"attn_mask", "input_resolution", "context_length", "vocab_size"})
"""What older versions of open_clip wrote beside the weights."""

_LAYER = re.compile(r"(?P<index>\d+)\.(?P<name>.+)\.(?P<kind>weight|bias)")


@dataclass(frozen=True, kw_only=True)
class OpenClipArchitecture:
    """What the shapes of an open_clip checkpoint do not tell; the defaults are open_clip's.

    Attributes:
        vision_head_width: Channels of an attention head of the image tower.
        text_head_width: Of the text tower.
        quick_gelu: Whether the activation is x·σ(1.702 x), as in OpenAI's and the DFN weights, instead of the exact GELU.
    """

    vision_head_width: int = 64
    text_head_width: int = 64
    quick_gelu: bool = False

    @staticmethod
    def of_config(config: Mapping[str, Any]) -> OpenClipArchitecture:
        """From the ``model_cfg`` of an ``open_clip_config.json``.

        Raises:
            RewardError: If it describes a network that transformers' CLIP is not.
        """
        vision, text = dict(config.get("vision_cfg", {})), dict(config.get("text_cfg", {}))
        known_vision = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
        known_text = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
        known = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
        unknown = [*(set(config) - known), *(f"vision_cfg.{k}" for k in set(vision) - known_vision)]
        unknown += [f"text_cfg.{k}" for k in set(text) - known_text]
        if unknown or not isinstance(vision.get("layers"), int):
            what = ", ".join(sorted(unknown)) or "vision_cfg.layers of a convolutional network"
            raise RewardError(f"transformers' CLIP has no counterpart of the open_clip settings {what}; set backend: open_clip")
        heads = text.get("heads", text.get("width", 512) // 64)
        return OpenClipArchitecture(
            vision_head_width=vision.get("head_width", 64),
            text_head_width=text.get("width", 512) // heads,
            quick_gelu=bool(config.get("quick_gelu", False)),
        )


def open_clip_settings(state: Mapping[str, Tensor], architecture: OpenClipArchitecture) -> dict[str, Any]:
    """The arguments of ``open_clip.CLIP`` that a checkpoint fits.

    Args:
        state: open_clip's names to tensors.
        architecture: What the shapes do not tell.

    Raises:
        RewardError: If the names are not those of a CLIP with a vision transformer.
    """
    wanted = ("visual.conv1.weight", "visual.positional_embedding", "token_embedding.weight", "positional_embedding", "text_projection")
    if missing := [name for name in wanted if name not in state]:
        raise RewardError(f"this is not an open_clip checkpoint of a CLIP with a vision transformer: it has no {', '.join(missing)}")
    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    vocabulary, text_width = state["token_embedding.weight"].shape
    vision = {"image_size": grid * patch, "patch_size": patch, "width": width, "head_width": architecture.vision_head_width}
    text = {"context_length": len(state["positional_embedding"]), "vocab_size": vocabulary, "width": text_width}
    return {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": architecture.quick_gelu,
        "vision_cfg": vision | {"layers": _layers(state, "visual.transformer."), "mlp_ratio": _ratio(state, "visual.transformer.", width)},
        "text_cfg": text
        | {"heads": text_width // architecture.text_head_width, "layers": _layers(state, "transformer.")}
        | {"mlp_ratio": _ratio(state, "transformer.", text_width)},
    }


def clip_settings(state: Mapping[str, Tensor], architecture: OpenClipArchitecture) -> dict[str, Any]:
    """The arguments of ``transformers.CLIPConfig`` that an open_clip checkpoint fits.

    Args:
        state: open_clip's names to tensors.
        architecture: What the shapes do not tell.

    Raises:
        RewardError: If the names are not those of a CLIP with a vision transformer.
    """
    settings = open_clip_settings(state, architecture)
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    common = {"hidden_act": "quick_gelu" if architecture.quick_gelu else "gelu", "layer_norm_eps": 1e-5}
    last = text["vocab_size"] - 1
    return {
        "projection_dim": settings["embed_dim"],
        "vision_config": common
        | {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
        | _tower(vision, heads=vision["width"] // vision["head_width"]),
        "text_config": common
        | {"vocab_size": text["vocab_size"], "max_position_embeddings": text["context_length"]}
        | {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
        | _tower(text, heads=text["heads"]),
    }


def converted_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an open_clip checkpoint under the names of ``transformers.CLIPModel``.

    Raises:
        RewardError: If there are tensors that a CLIP with a vision transformer does not have.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _OTHER_NAMES:
            converted[_OTHER_NAMES[name]] = (tensor.T if name in _TRANSPOSED else tensor).contiguous()
        elif name not in CONSTANTS:
            converted |= _layer_tensors(name, tensor)
    return converted


def _layer_tensors(name: str, tensor: Tensor) -> dict[str, Tensor]:
    for theirs, ours in _TOWERS:
        if name.startswith(theirs):
            rest = name.removeprefix(theirs).replace("attn.in_proj_", "attn.in_proj.")
            match = _LAYER.fullmatch(rest)
            if match and match["name"] == "attn.in_proj":
                parts = zip("qkv", tensor.chunk(3), strict=True)
                start = f"{ours}{match['index']}.self_attn."
                return {f"{start}{part}_proj.{match['kind']}": chunk.contiguous() for part, chunk in parts}
            if match and match["name"] in _LAYER_NAMES:
                return {f"{ours}{match['index']}.{_LAYER_NAMES[match['name']]}.{match['kind']}": tensor}
    raise RewardError(
        f"the open_clip checkpoint has a tensor {name!r} that transformers' CLIP has no counterpart of; set backend: open_clip"
    )


def _layers(state: Mapping[str, Tensor], tower: str) -> int:
    return sum(name.startswith(tower + "resblocks.") and name.endswith(".ln_1.weight") for name in state)


def _ratio(state: Mapping[str, Tensor], tower: str, width: int) -> float:
    return len(state[f"{tower}resblocks.0.mlp.c_fc.weight"]) / width


def _tower(settings: Mapping[str, Any], *, heads: int) -> dict[str, Any]:
    width = settings["width"]
    sizes = {"hidden_size": width, "intermediate_size": round(width * settings["mlp_ratio"])}
    return sizes | {"num_hidden_layers": settings["layers"], "num_attention_heads": heads}
