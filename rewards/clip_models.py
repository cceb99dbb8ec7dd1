"""CLIP as a scorer (arXiv:2103.00020): pictures and texts as unit vectors, through transformers or open_clip.

A checkpoint is a folder or hub repository in transformers' format (``config.json``) or open_clip's (``open_clip_config.json``), or a
bare file in open_clip's, such as HPSv2's. transformers runs both; open_clip (extra ``open-clip``) only its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowrl.errors import RewardError
from rewards.clip_conversion import OpenClipArchitecture, clip_settings, converted_tensors, open_clip_settings
from rewards.preprocessing import ClipPixels
from rewards.published import CLIP_TOKENIZER, Published
from rewards.texts import read_tokenizer
from rewards.weights import check_sha256, find_file, find_files, find_first, is_folder_like, loaded_once, read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Backend", "ClipModel", "ClipNetwork", "ClipSource", "load_clip"]

Backend = Literal["transformers", "open_clip"]

KEPT_TEXTS = 16384  # text features kept per model; 67 MB at 1024 channels
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_CONFIGS = ("config.json", "open_clip_config.json", "preprocessor_config.json")
_INTERPOLATIONS: dict[Any, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}


class ClipNetwork(Protocol):
    """The two towers of a CLIP and its tokenizer."""

    module: Any

    @property
    def size(self) -> int:
        """Side of the pictures that it sees, pixels."""
        ...

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by."""
        ...

    def tokens(self, text: str) -> Tensor:
        """The numbers of a text's tokens, (1, token), start and end included."""
        ...

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Projected embeddings of preprocessed pictures, (batch, channel)."""
        ...

    def text_embeddings(self, tokens: Tensor) -> Tensor:
        """Projected embeddings of texts, (batch, channel)."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Which CLIP, and how it is read.

    Attributes:
        checkpoint: A path or a hub id, see `rewards.weights`.
        published: Where the weights come from, for messages.
        sha256: Of the file of weights; None accepts any.
        tokenizer: Folder or hub id of the tokenizer's files for transformers; None looks beside the weights. open_clip brings its own.
        backend: Which library runs it.
        architecture: What the shapes of a bare open_clip file do not tell.
        clean: Whether texts are cleaned as by CLIP's original tokenizer before transformers' splits them; open_clip always cleans.
    """

    checkpoint: str
    published: Published
    sha256: str | None = None
    tokenizer: str | None = None
    backend: Backend = "transformers"
    architecture: OpenClipArchitecture | None = None
    clean: bool = True


class ClipModel:
    """A loaded CLIP; its features are unit vectors in float32.

    Attributes:
        network: The towers.
        pixels: The preprocessing that its files name, else OpenAI's.
        logit_scale: What cosines are multiplied by to give logits.
    """

    def __init__(self, network: ClipNetwork, pixels: ClipPixels, device: torch.device, dtype: torch.dtype) -> None:
        self.network, self.pixels, self.logit_scale = network, pixels, network.logit_scale
        self._device, self._dtype = device, dtype
        network.module.to(device=device, dtype=dtype).requires_grad_(False).eval()  # noqa: FBT003 - torch's name for it
        self._text = lru_cache(maxsize=KEPT_TEXTS)(self._encode)

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Unit vectors of pictures, (batch, channel), float32.

        Args:
            pixels: Preprocessed pictures (batch, 3, size, size).
        """
        return normalize(self.network.image_embeddings(pixels.to(self._device, self._dtype)).float(), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, (batch, channel), float32.

        Every text is encoded once and alone, so that its features do not depend on what else is in the batch.

        Args:
            texts: What the pictures should show.
        """
        return torch.cat([self._text(str(text)) for text in texts])

    def cosines(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosine of each picture's features and its text's, (batch,), in [−1, 1], float32.

        Args:
            pixels: Preprocessed pictures (batch, 3, size, size).
            texts: One per picture.
        """
        return (self.image_features(pixels) * self.text_features(texts)).sum(-1)

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        return normalize(self.network.text_embeddings(self.network.tokens(text).to(self._device)).float(), dim=-1)


@loaded_once
def load_clip(source: ClipSource, device: torch.device, dtype: torch.dtype) -> ClipModel:
    """A CLIP on a device, read once per process.

    Args:
        source: Which.
        device: Where it runs.
        dtype: Of its weights and activations.

    Raises:
        RewardError: If weights, configuration or tokenizer are missing or do not fit; the message says where they come from.
        MissingExtraError: If open_clip is wanted and not installed.
    """
    configs = _configs(source)
    network = _transformers(source, configs) if source.backend == "transformers" else _open_clip(source, configs)
    return ClipModel(network, _pixels(configs, network.size), device, dtype)


def _configs(source: ClipSource) -> dict[str, Any]:
    """Name to content of the configuration files beside the weights; none beside a bare file."""
    if not is_folder_like(source.checkpoint):
        return {}
    files = find_files(source.checkpoint, _CONFIGS, source.published)
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}


def _transformers(source: ClipSource, configs: Mapping[str, Any]) -> ClipNetwork:
    from rewards.clip_transformers import TransformersClip

    if "config.json" in configs:
        settings, state = configs["config.json"], _tensors(source, _WEIGHTS)
    else:
        model, architecture = _open_clip_model(configs), source.architecture
        if model is not None:
            architecture = OpenClipArchitecture.of_config(model)
        state = _open_clip_tensors(source, architecture)
        settings, state = clip_settings(state, cast("OpenClipArchitecture", architecture)), converted_tensors(state)
    named = source.tokenizer or (source.checkpoint if is_folder_like(source.checkpoint) else None)
    if named is None:
        raise RewardError(f"{source.checkpoint} is one file and has no tokenizer beside it; name one. {CLIP_TOKENIZER.advice}")
    tokenizer = read_tokenizer("CLIPTokenizer", named, CLIP_TOKENIZER)
    return TransformersClip.of_state(state, settings, tokenizer, clean=source.clean)


def _open_clip(source: ClipSource, configs: Mapping[str, Any]) -> ClipNetwork:
    from rewards.open_clip_backend import OpenClipNetwork

    model = _open_clip_model(configs)
    state = _open_clip_tensors(source, model or source.architecture)
    return OpenClipNetwork.of_state(state, model or open_clip_settings(state, cast("OpenClipArchitecture", source.architecture)))


def _open_clip_model(configs: Mapping[str, Any]) -> dict[str, Any] | None:
    return configs["open_clip_config.json"]["model_cfg"] if "open_clip_config.json" in configs else None


def _open_clip_tensors(source: ClipSource, described: object) -> dict[str, Tensor]:
    if described is None:
        raise RewardError(
            f"{source.checkpoint} has no open_clip_config.json beside its weights, which the back end {source.backend} needs to know the "
            f"network; give a folder or hub repository that has one{'' if source.backend == 'open_clip' else ', or a config.json'}"
        )
    return _tensors(source, _OPEN_CLIP_WEIGHTS)


def _tensors(source: ClipSource, names: Sequence[str]) -> dict[str, Tensor]:
    folder = is_folder_like(source.checkpoint)
    path = find_first(source.checkpoint, names, source.published) if folder else find_file(source.checkpoint, source.published)
    check_sha256(path, source.sha256)
    return read_tensors(path)


def _pixels(configs: Mapping[str, Any], size: int) -> ClipPixels:
    """The preprocessing that the files name, open_clip's before transformers'; OpenAI's where they name none."""
    named = _open_clip_preprocessing(configs) or _transformers_preprocessing(configs.get("preprocessor_config.json", {}), size)
    if named["way"] not in {"shortest", "squash"} or named["interpolation"] not in _INTERPOLATIONS:
        asked = f"{named['way']} with the interpolation {named['interpolation']}"
        raise RewardError(f"the files ask to resize {asked}; known are shortest and squash, bicubic (3) and bilinear (2)")
    numbers = {key: tuple(named[key]) for key in ("mean", "std") if named[key]}
    return ClipPixels(size=size, squash=named["way"] == "squash", interpolation=_INTERPOLATIONS[named["interpolation"]], **numbers)


def _open_clip_preprocessing(configs: Mapping[str, Any]) -> dict[str, Any] | None:
    given = configs.get("open_clip_config.json", {}).get("preprocess_cfg")
    if not given:
        return None
    way, interpolation = given.get("resize_mode", "shortest"), given.get("interpolation", "bicubic")
    return {"way": way, "interpolation": interpolation, "mean": given.get("mean"), "std": given.get("std")}


def _transformers_preprocessing(given: Mapping[str, Any], size: int) -> dict[str, Any]:
    resized = given.get("size", {"shortest_edge": size})
    shortest = resized.get("shortest_edge") if isinstance(resized, dict) else resized
    way = "squash" if shortest is None else "shortest" if shortest == size else f"the shortest side to {shortest} for a network of {size}"
    return {
        "way": way,
        "interpolation": given.get("resample", 3),
        "mean": given.get("image_mean"),
        "std": given.get("image_std"),
    }
