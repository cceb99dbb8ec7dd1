"""Self-contained model files: weights in safetensors with a card that says what they are, sealed by a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flowrl.config import asset_path, instantiate_data
from flowrl.errors import CheckpointError, ConfigError
from flowrl.train.describe import describe
from robot.normalise import NormStats

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FileKind", "NamesFile", "digest", "load_parts", "module_tensors", "read_stats", "stats_tensors"]

_VERSION = 1
_SHOWN = 2  # lines of torch's message


@runtime_checkable
class NamesFile(Protocol):
    """Part of a config that stands for a model file."""

    @property
    def path(self) -> str:
        """As the config has it: the file, its folder, or a bundled one."""
        ...

    def file(self) -> Path:
        """The file itself.

        Raises:
            CheckpointError: If there is none.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """One kind of model file: tensors, and a card with a recipe (the component that builds the modules again) and where it came from.

    Attributes:
        name: Of the file in a run folder, such as ``policy.safetensors``.
        noun: What it holds, for messages.
        key: Under which the card lies in the file's metadata.
        recipe: Class of the recipe.
        others: What to do with a file that is not of this kind, for messages.
    """

    name: str
    noun: str
    key: str
    recipe: type
    others: str = "give a file that flowrl train wrote"

    def find(self, path: str | Path) -> Path:
        """The file: itself, in a run folder, or a bundled one (``assets/…``).

        Raises:
            CheckpointError: If there is none.
        """
        found = Path(path).expanduser()
        if not found.exists() and str(path).startswith("assets/"):
            found = asset_path(str(path))
        found = found / self.name if found.is_dir() else found
        if not found.is_file():
            raise CheckpointError(f"there is no {self.noun} {found}; give a {self.name}, or a folder that flowrl train finished")
        return found

    def save(self, path: Path, recipe: object, tensors: Mapping[str, Tensor], training: Mapping[str, Any] | None = None) -> Path:
        """Write a file, whole or not at all.

        Args:
            path: Of the file.
            recipe: What it is; a frozen dataclass that :func:`flowrl.config.instantiate` can build again.
            tensors: Weights, buffers, normalisers.
            training: JSON-like facts about where it came from: ``config``, ``data``, ``steps``.

        Raises:
            CheckpointError: If it cannot be written.
        """
        from safetensors.torch import save_file

        kept = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        card: dict[str, Any] = {"version": _VERSION, "recipe": describe(recipe), "training": describe(training or {})}
        card["sha256"] = digest(kept, card)
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(kept, part, metadata={self.key: json.dumps(card)})  # one entry: safetensors shuffles several
            descriptor = os.open(part, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            return part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise CheckpointError(f"could not write the {self.noun} {path}: {error}; free some space and save again") from error

    def publish(self, checkpoint: Path, folder: Path) -> Path:
        """Copy the file of a checkpoint into its run folder, whole or not at all.

        Args:
            checkpoint: Its folder.
            folder: Of the run.
        """
        published = folder / self.name
        part = published.with_name(self.name + ".part")
        shutil.copyfile(checkpoint / self.name, part)
        return part.replace(published)

    def load(self, path: str | Path) -> tuple[Any, dict[str, Tensor]]:
        """Recipe and tensors, checked.

        Raises:
            CheckpointError: If the file is missing, truncated, altered, of a newer version or of another kind.
        """
        from safetensors.torch import load_file

        path = self.find(path)
        card, tensors = self._card(path), load_file(path)
        if digest(tensors, card) != card["sha256"]:
            raise CheckpointError(f"{path} was altered after it was written: its fingerprint does not fit; copy it again, or train again")
        return self._recipe(path, card), tensors

    def read_recipe(self, path: str | Path) -> Any:
        """What it is, without its weights.

        Raises:
            CheckpointError: If the file is missing, truncated or of another kind.
        """
        path = self.find(path)
        return self._recipe(path, self._card(path))

    def read_training(self, path: str | Path) -> dict[str, Any]:
        """Where it came from: ``config`` of its training, ``data`` with the demonstrations' ``sha256``, ``steps``.

        Raises:
            CheckpointError: If the file is missing, truncated or of another kind.
        """
        return dict(self._card(self.find(path))["training"])

    def sha256(self, path: str | Path) -> str:
        """Its fingerprint, over weights and card.

        Raises:
            CheckpointError: If the file is missing, truncated or of another kind.
        """
        return str(self._card(self.find(path))["sha256"])

    def _card(self, path: Path) -> dict[str, Any]:
        """What the file says about itself."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is truncated or no safetensors file ({error}); copy it again, or train again") from error
        if self.key not in metadata:
            raise CheckpointError(f"{path} holds no {self.noun} of flowrl; {self.others}")
        try:
            card = dict(json.loads(metadata[self.key]))
            version, _ = int(card["version"]), (card["recipe"], card["training"], card["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} describes a {self.noun} that cannot be read: {error!r}") from error
        if version > _VERSION:
            raise CheckpointError(f"{path} is of version {version}, this flowrl reads up to {_VERSION}; install a newer one")
        return card

    def _recipe(self, path: Path, card: Mapping[str, Any]) -> Any:
        try:
            recipe = instantiate_data(card["recipe"], "recipe")
        except ConfigError as error:
            raise CheckpointError(f"{path} describes a {self.noun} that cannot be built here: {error}") from error
        if not isinstance(recipe, self.recipe):
            raise CheckpointError(f"{path} describes a {type(recipe).__name__}, not a {self.noun}")
        return recipe


def module_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Weights and buffers of named modules, each name with its module's before it."""
    return {f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()}


def load_parts(path: Path, tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], device: torch.device | str, noun: str) -> None:
    """Give modules the weights of a file, freeze them and put them on a device.

    Args:
        path: Of the file, for messages.
        tensors: From :meth:`FileKind.load`.
        modules: By the name that :func:`module_tensors` got.
        device: Where they will act.
        noun: What the file holds, for messages.

    Raises:
        CheckpointError: If they do not fit.
    """
    try:
        for part, module in modules.items():
            module.load_state_dict({name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")})
            module.requires_grad_(requires_grad=False).eval().to(device)
    except RuntimeError as error:
        problem = "; ".join(line.strip() for line in str(error).splitlines()[:_SHOWN])
        raise CheckpointError(f"the weights in {path} do not fit the {noun} that it describes: {problem}") from error


def stats_tensors(stats: NormStats) -> dict[str, Tensor]:
    """The normaliser of the actions as a file's tensors."""
    return {"action.offset": stats.offset, "action.scale": stats.scale}


def read_stats(path: Path, tensors: Mapping[str, Tensor]) -> NormStats:
    """The normaliser of the actions in a file's tensors.

    Raises:
        CheckpointError: If it is missing or none.
    """
    try:
        return NormStats(tensors["action.offset"], tensors["action.scale"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} holds no normaliser of actions that can be used: {error}; train again") from error


def digest(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """SHA-256 of weights, and of all that a card says but the fingerprint itself.

    Args:
        tensors: By name, on the CPU.
        card: JSON-like.
    """
    said = {name: value for name, value in card.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
