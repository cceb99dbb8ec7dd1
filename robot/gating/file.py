"""One file that is a gate: its weights, how to build it, and which model it was trained on, all in ``gate.safetensors``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flowrl.errors import ConfigError
from robot.gating.gate import Gate, GateConfig
from robot.learning.files import FileKind, digest, load_parts, module_tensors, stats_tensors
from robot.policies import PolicySource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from robot.world_action import WorldActionModel

__all__ = ["GATES", "GateRecipe", "NoiseGateFile", "load_gate", "model_fingerprint", "save_gate"]


@dataclass(frozen=True, kw_only=True)
class GateRecipe:
    """All that a gate is besides its weights.

    Attributes:
        gate: Its kind and settings.
        frames: Predicted latents.
        tokens: Of a latent.
        channels: Numbers of a token.
        model: The world-action model that it was trained on; None where that is no component.
        model_sha256: Fingerprint of that model's weights; empty where unknown.
    """

    gate: GateConfig
    frames: int
    tokens: int
    channels: int
    model: PolicySource | None = None
    model_sha256: str = ""

    def build(self) -> Gate:
        """The gate with fresh weights."""
        return self.gate.build(self.frames, self.tokens, self.channels)


GATES = FileKind(name="gate.safetensors", noun="noise gate", key="flowrl.gate", recipe=GateRecipe)


@dataclass(frozen=True, kw_only=True)
class NoiseGateFile:
    """A world-action model under a trained gate, as a config names it.

    Attributes:
        path: Of ``gate.safetensors``, or the folder that ``flowrl train`` wrote, or a bundled one (``assets/…``).
        model: The model; None takes the one that the gate was trained on, from where it lay then.
        transfer: Whether the model may have other weights than the one that the gate was trained on.
    """

    path: str
    model: PolicySource | None = None
    transfer: bool = False

    def file(self) -> Path:
        """Where it is.

        Raises:
            CheckpointError: If there is none.
        """
        return GATES.find(self.path)

    def load(self, device: str = "cpu") -> WorldActionModel:
        """The policy, ready to act; its schedule is the gate's mean.

        Raises:
            CheckpointError: If a file is missing, damaged or of another kind.
            ConfigError: If there is no model, or it is not one that this gate fits.
        """
        path = self.file()
        recipe: GateRecipe = GATES.read_recipe(path)
        source = self.model or recipe.model
        if source is None:
            raise ConfigError(f"{path} does not say which model it was trained on; set model, such as a robot.WorldActionFile")
        model = _world_action_model(source, device)
        if not self.transfer and recipe.model_sha256 and model_fingerprint(model) != recipe.model_sha256:
            raise ConfigError(f"{path} was trained on other weights; set model to those, or transfer to true to try it on these")
        layout = model.layout
        if (layout.frames, layout.tokens, layout.channels) != (recipe.frames, recipe.tokens, recipe.channels):
            raise ConfigError(
                f"{path} reads {recipe.frames} latents of {recipe.tokens} × {recipe.channels} numbers, the model predicts "
                f"{layout.frames} of {layout.tokens} × {layout.channels}; train a gate on that model"
            )
        return model.with_schedule(load_gate(path, device))


def save_gate(
    path: Path,
    gate: Gate,
    model: WorldActionModel,
    *,
    source: PolicySource | None = None,
    training: Mapping[str, Any] | None = None,
    fingerprint: str | None = None,
) -> Path:
    """Write a gate, whole or not at all.

    Args:
        path: The file.
        gate: Trained.
        model: On this.
        source: Where the model came from.
        training: JSON-like facts: ``config``, ``updates`` and so on.
        fingerprint: Of the model, where it is known already; None computes it, which reads all of its weights.

    Raises:
        CheckpointError: If it cannot be written.
    """
    layout = model.layout
    recipe = GateRecipe(
        gate=gate.settings,  # type: ignore[arg-type]  # a gate's settings are the config that builds it
        frames=layout.frames,
        tokens=layout.tokens,
        channels=layout.channels,
        model=source,
        model_sha256=fingerprint or model_fingerprint(model),
    )
    return GATES.save(path, recipe, module_tensors({"gate": gate}), training)


def load_gate(path: str | Path, device: torch.device | str = "cpu") -> Gate:
    """Read a gate; its weights are frozen.

    Args:
        path: What :class:`NoiseGateFile` takes.
        device: Where it will act.

    Raises:
        CheckpointError: If the file is missing, truncated, altered, of a newer version or no gate.
    """
    path = GATES.find(path)
    recipe, tensors = GATES.load(path)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and thrown away
        gate: Gate = recipe.build()
    load_parts(path, tensors, {"gate": gate}, device, GATES.noun)
    return gate


def model_fingerprint(model: WorldActionModel) -> str:
    """SHA-256 of a model's weights, buffers and normalisers; neither its schedule nor its task counts.

    Args:
        model: On any device.
    """
    tensors = module_tensors(model.parts) | stats_tensors(model.stats)
    return digest({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {})


def _world_action_model(source: PolicySource, device: str) -> WorldActionModel:
    from robot.world_action import WorldActionModel

    model = source.load(device)
    if not isinstance(model, WorldActionModel):
        raise ConfigError(f"a gate needs a world-action model, {type(source).__name__} gives a {type(model).__name__}")
    return model
