"""One file that is a policy: weights, normalisers, process, sampler settings and where it came from, all in ``policy.safetensors``."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowrl.config import asset_path, instantiate
from flowrl.errors import CheckpointError, ConfigError
from flowrl.train.describe import describe, differences
from robot.composition import Sampling
from robot.learning.recipe import Recipe
from robot.normalise import NormStats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from robot.policies import FlowPolicy

__all__ = ["POLICY_FILE", "PolicyFile", "find_policy", "load_policy", "read_recipe", "read_training", "save_policy"]

POLICY_FILE = "policy.safetensors"
_CARD, _VERSION = "flowrl.policy", 1
_PARTS = ("encoder", "network")
_SHOWN = 2  # lines of torch's message


@dataclass(frozen=True, kw_only=True)
class PolicyFile:
    """A trained policy as a config names it.

    A checkpoint fixes how it is sampled and executed. Fields beside the path are expectations: where the checkpoint says otherwise it is
    refused, never overridden. To sample a policy in another way on purpose, make it the only member of a :class:`robot.Composition` with a
    ``sampling`` of its own.

    Attributes:
        path: Of ``policy.safetensors``, or the folder that ``flowrl train`` wrote, or a bundled one (``assets/…``).
        sampling: How it is expected to be sampled; None takes what the checkpoint says.
        execute: Actions of a chunk that are expected to be executed; None takes what the checkpoint says.
        data_sha256: Fingerprint of the demonstrations that it is expected to come from; None takes any.
    """

    path: str
    sampling: Sampling | None = None
    execute: int | None = None
    data_sha256: str | None = None

    def load(self, device: torch.device | str = "cpu") -> FlowPolicy:
        """The policy, ready to act.

        Raises:
            CheckpointError: If the file is missing, damaged or no policy.
            ConfigError: If it contradicts an expectation.
        """
        path = find_policy(self.path)
        self._check(path, read_recipe(path))
        return load_policy(path, device)

    def _check(self, path: Path, recipe: Recipe) -> None:
        fixed: dict[str, Any] = {"sampling": recipe.sampling, "execute": recipe.execute}
        if self.data_sha256 is not None:
            fixed["data_sha256"] = read_training(path).get("data", {}).get("sha256")
        wanted = {name: getattr(self, name) for name in fixed if getattr(self, name) is not None}
        if wrong := differences(
            {name: describe(fixed[name]) for name in wanted}, {name: describe(value) for name, value in wanted.items()}
        ):
            raise ConfigError(
                f"{path} fixes {'; '.join(wrong)} was asked for. Leave it out to evaluate the policy as it was trained; to sample it "
                "otherwise on purpose, make it the only member of a robot.Composition with a sampling of its own"
            )


def find_policy(path: str | Path) -> Path:
    """The file of a policy: itself, in a run folder, or a bundled one.

    Raises:
        CheckpointError: If there is none.
    """
    found = Path(path).expanduser()
    if not found.exists() and str(path).startswith("assets/"):
        found = asset_path(str(path))
    found = found / POLICY_FILE if found.is_dir() else found
    if not found.is_file():
        raise CheckpointError(f"there is no policy {found}; give a {POLICY_FILE}, or a folder that flowrl train finished")
    return found


def save_policy(
    path: Path, recipe: Recipe, encoder: nn.Module, network: nn.Module, stats: NormStats, training: Mapping[str, Any] | None = None
) -> Path:
    """Write a policy, whole or not at all.

    Args:
        path: The file.
        recipe: What it is.
        encoder: Its weights and statistics.
        network: Its weights.
        stats: Normaliser of the actions.
        training: JSON-like facts about where it came from: ``config``, ``data``, ``steps``.

    Raises:
        CheckpointError: If it cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {
        f"{part}.{name}": value
        for part, module in zip(_PARTS, (encoder, network), strict=True)
        for name, value in module.state_dict().items()
    }
    tensors |= {"action.offset": stats.offset, "action.scale": stats.scale}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    card: dict[str, Any] = {"version": _VERSION, "recipe": describe(recipe), "training": describe(training or {})}
    card["sha256"] = _digest(tensors, card)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata={_CARD: json.dumps(card)})  # one entry: safetensors shuffles several
        descriptor = os.open(part, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(f"could not write the policy {path}: {error}; free some space and save again") from error


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> FlowPolicy:
    """Read a policy; its weights are frozen.

    Args:
        path: What :class:`PolicyFile` takes.
        device: Where it will act.

    Raises:
        CheckpointError: If the file is missing, truncated, altered, of a newer version or no policy of flowrl.
    """
    path = find_policy(path)
    tensors, card = _read(path)
    recipe = _recipe(path, card)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and thrown away
        modules = recipe.build()
    try:
        stats = NormStats(tensors.pop("action.offset"), tensors.pop("action.scale"))
        for part, module in zip(_PARTS, modules, strict=True):
            module.load_state_dict({name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")})
            module.requires_grad_(requires_grad=False).eval().to(device)
    except (KeyError, RuntimeError, ValueError) as error:
        problem = "; ".join(line.strip() for line in str(error).splitlines()[:_SHOWN])
        raise CheckpointError(f"the weights in {path} do not fit the policy that it describes: {problem}") from error
    return recipe.policy(*modules, stats)


def read_recipe(path: str | Path) -> Recipe:
    """What a policy is, without its weights.

    Raises:
        CheckpointError: If the file is missing, truncated or no policy.
    """
    path = find_policy(path)
    return _recipe(path, _card(path))


def read_training(path: str | Path) -> dict[str, Any]:
    """Where a policy came from: ``config`` of its training, ``data`` with the demonstrations' ``sha256``, ``steps``.

    Raises:
        CheckpointError: If the file is missing, truncated or no policy.
    """
    return dict(_card(find_policy(path))["training"])


def _card(path: Path) -> dict[str, Any]:
    """What the file says about itself."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}); copy it again, or train again") from error
    if _CARD not in metadata:
        raise CheckpointError(f"{path} holds no policy of flowrl; policies of other libraries are loaded through robot.adapters")
    try:
        card = dict(json.loads(metadata[_CARD]))
        version, _ = int(card["version"]), (card["recipe"], card["training"], card["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} describes a policy that cannot be read: {error!r}") from error
    if version > _VERSION:
        raise CheckpointError(f"{path} is of version {version}, this flowrl reads up to {_VERSION}; install a newer one")
    return card


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors.torch import load_file

    card, tensors = _card(path), load_file(path)
    if _digest(tensors, card) != card["sha256"]:
        raise CheckpointError(f"{path} was altered after it was written: its fingerprint does not fit; copy it again, or train again")
    return tensors, card


def _recipe(path: Path, card: Mapping[str, Any]) -> Recipe:
    try:
        recipe = instantiate(card["recipe"], "recipe")
    except ConfigError as error:
        raise CheckpointError(f"{path} describes a policy that cannot be built here: {error}") from error
    if not isinstance(recipe, Recipe):
        raise CheckpointError(f"{path} describes a {type(recipe).__name__}, not a policy")
    return recipe


def _digest(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """Fingerprint of the weights, and of all that the card says but the fingerprint itself."""
    said = {name: value for name, value in card.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
