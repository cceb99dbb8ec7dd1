"""What a pipeline is made of: its parts' classes and configurations, without a weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowrl.config import asset_path
from flowrl.models.source import resolve_path

__all__ = ["Architecture", "Part", "architecture_of", "bundled_ids", "shared_part"]

BUNDLED = "architectures"
SHARED = "shared.json"
LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network.

    Attributes:
        library: ``diffusers`` or ``transformers``.
        kind: Its class there.
        settings: Its configuration, as JSON with sorted keys: two parts with the same settings are equal.
    """

    library: str
    kind: str
    settings: str

    @property
    def config(self) -> dict[str, Any]:
        """The configuration."""
        return json.loads(self.settings)

    def build(self) -> Any:
        """The network on the meta device, in evaluation mode: shapes and dtypes, no memory.

        Raises:
            ValueError: If the installed library has no such class, or it does not take the configuration.
        """
        module = __import__(self.library)
        if not hasattr(module, self.kind):
            raise ValueError(f"the installed {self.library} has no {self.kind}; install a newer one")
        component = getattr(module, self.kind)
        try:
            with torch.device("meta"):
                if self.library == "diffusers":
                    return component.from_config(self.config).eval()
                return component(component.config_class.from_dict(self.config)).eval()
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{self.kind} cannot be built from its configuration ({error})") from error

    @property
    def parameters(self) -> int:
        """Numbers in its parameters and in the buffers that are saved with them."""
        return _size(self)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A pipeline.

    Attributes:
        pipeline: Its class in diffusers.
        parts: Its networks by their names in the pipeline.
        origin: Where this is known from.
    """

    pipeline: str
    parts: Mapping[str, Part]
    origin: str

    def encoders(self) -> dict[str, Part]:
        """The parts that read prompts."""
        return {name: part for name, part in self.parts.items() if name.startswith(("text_encoder", "image_encoder"))}


def architecture_of(path: str) -> Architecture:
    """Find out what a pipeline is made of without reading or downloading weights.

    Args:
        path: As a model's ``path``: a folder, ``assets/models/...`` or a hub's id. An id is looked for in the hub's cache on this machine,
            then among the bundled descriptions.

    Raises:
        CheckpointError: If there is no such folder.
        ValueError: If nothing is known of it here, or a configuration in its folder cannot be read.
    """
    found = resolve_path(path)
    folder = Path(found) if Path(found).is_dir() else _cached(found)
    if folder is not None:
        return _of_folder(folder)
    for file in sorted(asset_path(BUNDLED).glob("*.json")):
        described = json.loads(file.read_text(encoding="utf-8"))
        if file.name != SHARED and path in described["ids"]:
            parts = {name: shared_part(part) if isinstance(part, str) else _part(part) for name, part in described["parts"].items()}
            return Architecture(pipeline=described["pipeline"], parts=parts, origin=f"assets/{BUNDLED}/{file.name}")
    raise ValueError(
        f"{path} is not on this machine, and its architecture is not among the bundled ones ({', '.join(bundled_ids())}); "
        "download the pipeline, or give the folder it is in"
    )


def bundled_ids() -> list[str]:
    """The hub's ids whose architecture is bundled."""
    files = [file for file in sorted(asset_path(BUNDLED).glob("*.json")) if file.name != SHARED]
    return sorted(name for file in files for name in json.loads(file.read_text(encoding="utf-8"))["ids"])


@cache
def shared_part(name: str) -> Part:
    """A network that several pipelines or rewards use, such as ``t5_xxl`` or ``clip_vit_h_14``.

    Raises:
        ValueError: If there is none of that name.
    """
    parts = json.loads((asset_path(BUNDLED) / SHARED).read_text(encoding="utf-8"))
    if name not in parts:
        raise ValueError(f"no shared network {name!r}; there are {', '.join(sorted(parts))}")
    return _part(parts[name])


@cache
def _size(part: Part) -> int:
    return sum(tensor.numel() for tensor in part.build().state_dict().values())


def _part(described: Mapping[str, Any]) -> Part:
    return Part(library=described["library"], kind=described["class"], settings=json.dumps(described["config"], sort_keys=True))


def _cached(name: str) -> Path | None:
    """The folder of a hub's id that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(name, "model_index.json")
    return Path(index).parent if isinstance(index, str) else None


def _of_folder(folder: Path) -> Architecture:
    index = _json(folder / "model_index.json")
    parts = {}
    for name, where in index.items():
        if isinstance(where, list) and where[0] in LIBRARIES and (folder / name / "config.json").is_file():
            library, kind = where
            if isinstance(getattr(__import__(library), kind, None), type) and issubclass(getattr(__import__(library), kind), nn.Module):
                parts[name] = _part({"library": library, "class": kind, "config": _json(folder / name / "config.json")})
    return Architecture(pipeline=str(index["_class_name"]), parts=parts, origin=str(folder))


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}); the model's folder is incomplete") from error
