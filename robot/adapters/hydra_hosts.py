"""What DPPO and ReinFlow have in common: hydra configs that build the model, normalisers in an ``.npz``, observations as ``cond``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flowrl.errors import CheckpointError, ConfigError
from robot.adapters.base import AdaptedPolicy
from robot.adapters.hosts import check_file, host_module
from robot.adapters.trust import require_trust
from robot.normalise import NormStats

if TYPE_CHECKING:
    from pathlib import Path

    from robot.types import Observation

__all__ = ["HydraPolicy", "MinMax", "build_model", "read_config"]

_OBSERVATION_EPS = 1e-6  # DPPO adds it to the range of observations, not of actions
_PIXEL_MAX = 255.0  # their vision encoders take pictures in [0, 255]


@dataclass(frozen=True, kw_only=True, eq=False)
class MinMax:
    """The normalisation that their environment wrappers apply, from ``normalization.npz``.

    Attributes:
        observation: Physical observations to [-1, 1], ``(feature,)``.
        action: [-1, 1] to physical actions, ``(dof,)``.
    """

    observation: NormStats
    action: NormStats

    @classmethod
    def read(cls, path: Path) -> MinMax:
        """From a file with ``obs_min``, ``obs_max``, ``action_min`` and ``action_max``.

        Raises:
            CheckpointError: If the file or one of these is missing.
        """
        with np.load(check_file(path)) as file:
            if missing := [key for key in ("obs_min", "obs_max", "action_min", "action_max") if key not in file]:
                raise CheckpointError(f"{path} has no {', '.join(missing)}: it is no normalization.npz of DPPO or ReinFlow")
            low, high = torch.from_numpy(file["obs_min"]), torch.from_numpy(file["obs_max"]) + _OBSERVATION_EPS
            bottom, top = torch.from_numpy(file["action_min"]), torch.from_numpy(file["action_max"])
        return cls(observation=NormStats((high + low) / 2, (high - low) / 2), action=NormStats((top + bottom) / 2, (top - bottom) / 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class HydraPolicy(AdaptedPolicy):
    """A policy of DPPO or ReinFlow. Its network sees the observation at every query: there is no separate encoder to run once.

    Attributes:
        inputs: ``{"state": (...)}``, the sensors joined into the state in the order of ``low_dim_keys``, and ``"rgb"`` for pictures.
        normalization: What the host's environment wrapper does; None where it does nothing.
        cond_steps: Frames of observation that the config gives it.
        act_steps: Actions of a chunk that the config executes; None for all.
    """

    inputs: Mapping[str, tuple[str, ...]]
    normalization: MinMax | None = None
    cond_steps: int = 1
    act_steps: int | None = None

    def host_inputs(self) -> Mapping[str, tuple[str, ...]]:
        """They are always given."""
        return self.inputs

    @property
    def history(self) -> int:
        """``cond_steps``."""
        return self.cond_steps

    @property
    def horizon(self) -> int:
        """``horizon_steps``."""
        return int(self.host.horizon_steps)

    @property
    def first(self) -> int:
        """Chunks begin at the present step."""
        return 0

    @property
    def execute(self) -> int:
        """``act_steps``."""
        return self.horizon if self.act_steps is None else self.act_steps

    def unnormalise(self, actions: Tensor) -> Tensor:
        """The environment wrapper's ``unnormalize_action``."""
        return actions if self.normalization is None else self.normalization.action.unnormalise(actions)

    def encode(self, observation: Observation) -> dict[str, Tensor]:
        """``cond``: ``state`` ``(batch, cond_steps, feature)`` normalised, ``rgb`` in [0, 255]."""
        cond = self.read(observation)
        if "state" in cond and self.normalization is not None:
            cond["state"] = self.normalization.observation.normalise(cond["state"])
        if "rgb" in cond:
            cond["rgb"] = cond["rgb"] * _PIXEL_MAX
        return cond


def read_config(path: Path, *, trusted: bool) -> Any:
    """A hydra config of the host.

    Args:
        path: The YAML file.
        trusted: Whether the user vouches for it.

    Raises:
        ConfigError: If it is not trusted, or describes no model.
        CheckpointError: If it is missing.
    """
    from omegaconf import OmegaConf

    require_trust(check_file(path), trusted=trusted, reason="it is a hydra config that calls whatever it names, with ${eval:...} in it")
    config = OmegaConf.load(path)
    if "model" not in config:
        raise ConfigError(
            f"{path} describes no model; give the host's evaluation config, such as cfg/robomimic/eval/lift/eval_diffusion_mlp.yaml"
        )
    register = getattr(OmegaConf, "register_resolver", None) or OmegaConf.register_new_resolver  # the new name, from 2.4 on
    for name, resolver in {"eval": eval, "round_up": lambda x: int(np.ceil(x)), "round_down": lambda x: int(np.floor(x))}.items():
        if not OmegaConf.has_resolver(name):
            register(name, resolver)
    config.device = "cpu"
    return config


def build_model(config: Any, install: str, device: str) -> Any:
    """The host's model from its config, in evaluation mode.

    Args:
        config: From :func:`read_config`, with the checkpoint's path filled in.
        install: How to get the host library.
        device: Where the weights go.

    Raises:
        MissingExtraError: If hydra or the host library cannot be imported.
    """
    hydra = host_module("hydra.utils", install)
    host_module(str(config.model["_target_"]).rpartition(".")[0], install)
    config.device = device
    config.model.device = device
    model = hydra.instantiate(config.model)
    model.eval()
    return model
