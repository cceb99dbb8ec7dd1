"""One file that is a policy: weights, normalisers, process, sampler settings and where it came from, all in ``policy.safetensors``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flowrl.errors import ConfigError
from flowrl.train.describe import describe, differences
from robot.composition import Sampling
from robot.learning.files import FileKind, load_parts, module_tensors, read_stats, stats_tensors
from robot.learning.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from robot.normalise import NormStats
    from robot.policies import FlowPolicy

__all__ = ["POLICIES", "POLICY_FILE", "PolicyFile", "find_policy", "load_policy", "read_recipe", "read_training", "save_policy"]

POLICY_FILE = "policy.safetensors"
POLICIES = FileKind(
    name=POLICY_FILE,
    noun="policy",
    key="flowrl.policy",
    recipe=Recipe,
    others="policies of other libraries are loaded through robot.adapters",
)


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

    def file(self) -> Path:
        """Where it is.

        Raises:
            CheckpointError: If there is none.
        """
        return find_policy(self.path)

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
    return POLICIES.find(path)


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
    tensors = module_tensors({"encoder": encoder, "network": network}) | stats_tensors(stats)
    return POLICIES.save(path, recipe, tensors, training)


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> FlowPolicy:
    """Read a policy; its weights are frozen.

    Args:
        path: What :class:`PolicyFile` takes.
        device: Where it will act.

    Raises:
        CheckpointError: If the file is missing, truncated, altered, of a newer version or no policy of flowrl.
    """
    path = POLICIES.find(path)
    recipe, tensors = POLICIES.load(path)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and thrown away
        encoder, network = recipe.build()
    load_parts(path, tensors, {"encoder": encoder, "network": network}, device, POLICIES.noun)
    policy: FlowPolicy = recipe.policy(encoder, network, read_stats(path, tensors))
    return policy


def read_recipe(path: str | Path) -> Recipe:
    """What a policy is, without its weights.

    Raises:
        CheckpointError: If the file is missing, truncated or no policy.
    """
    recipe: Recipe = POLICIES.read_recipe(path)
    return recipe


def read_training(path: str | Path) -> dict[str, Any]:
    """Where a policy came from: ``config`` of its training, ``data`` with the demonstrations' ``sha256``, ``steps``.

    Raises:
        CheckpointError: If the file is missing, truncated or no policy.
    """
    return POLICIES.read_training(path)
