"""openpi's π0 and π0.5 in PyTorch (github.com/Physical-Intelligence/openpi, read at 15a9616).

The JAX models sample inside one compiled loop without a hook: convert such a checkpoint with openpi's
``examples/convert_jax_model_to_pytorch.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robot.adapters.base import PresentFlow
from robot.adapters.hosts import attribute, check_file, class_method, first_query, host_module
from robot.adapters.prefix import Prefix
from robot.adapters.samplers import euler
from robot.composition import Sampling
from robot.types import ActionSpec, Observation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flowrl.shapes import RandomSource

__all__ = ["OpenPiCheckpoint", "OpenPiFlow"]

_INSTALL = (
    "openpi pins torch==2.7.1, transformers==4.53.2 (patched) and JAX, so flowrl does not resolve beside it: in openpi's own environment "
    "run pip install --no-deps flowrl-torch, then pip install omegaconf"
)
_PICTURE_AXES = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenPiFlow(PresentFlow):
    """openpi's ``Policy`` around ``PI0Pytorch``: velocity noise − data on ``(batch, action_horizon, 32)``, time 1 → 0.

    openpi's own transforms prepare each row; the prefix is encoded once per chunk into a key-value cache; a query is
    ``PI0Pytorch.denoise_step``. Dimensions after the robot's own are padding. Configs that turn deltas into absolute actions after
    unnormalising are refused: their action depends on the state.

    Attributes:
        host: ``openpi.policies.policy.Policy``.
        inputs: ``{"observation/state": ("state",), "observation/image": ("agentview",)}``: keys of the config's repack transform; one
            sensor each. Pictures are handed over as uint8 ``(height, width, channel)``.
        prompt: What to do, in words; empty for the policy's default.
        replan_steps: Actions of a chunk to execute; None for all. openpi leaves it to the client (LIBERO: 5).
    """

    inputs: Mapping[str, tuple[str, ...]]
    prompt: str = ""
    replan_steps: int | None = None

    def __post_init__(self) -> None:
        if not getattr(self.host, "_is_pytorch_model", True):
            raise ValueError(
                "this openpi policy is a JAX model, whose sampling loop has no hook: openpi's convert_jax_model_to_pytorch.py converts it"
            )
        for name in ("_model.denoise_step", "_input_transform", "_output_transform"):
            attribute(self.host, name, "openpi's Policy around PI0Pytorch")
        super().__post_init__()

    @property
    def model(self) -> Any:
        """``PI0Pytorch``."""
        return attribute(self.host, "_model", "openpi's Policy")

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @property
    def default_name(self) -> str:
        """Which of the two it is."""
        return "pi05" if getattr(self.model, "pi05", False) else "pi0"

    @property
    def horizon(self) -> int:
        """``action_horizon``."""
        return int(self.model.config.action_horizon)

    @property
    def execute(self) -> int:
        """``replan_steps``."""
        return self.horizon if self.replan_steps is None else self.replan_steps

    @property
    def sampling(self) -> Sampling:
        """Euler steps without clipping."""
        return Sampling(steps=self._steps, sampler="ode", clip=None)

    @property
    def private_dims(self) -> int:
        """Padding up to the model's ``action_dim``."""
        return int(self.model.config.action_dim) - self.action.dof

    @property
    def _steps(self) -> int:
        return int(getattr(self.host, "_sample_kwargs", {}).get("num_steps", 10))

    def host_inputs(self) -> Mapping[str, tuple[str, ...]]:
        """They are always given."""
        return self.inputs

    def unnormalise(self, actions: Tensor) -> Tensor:
        """The output transforms, row by row, each with another state, so that actions relative to it are found out."""
        width = int(self.model.config.action_dim)
        transform = attribute(self.host, "_output_transform", "openpi's Policy")

        def row(index: int) -> NDArray[Any]:
            chunk = np.zeros((1, width), np.float32)
            chunk[0, : self.action.dof] = actions[index].numpy()
            state = np.full(width, float(index), np.float32)
            return np.asarray(transform({"state": state, "actions": chunk})["actions"], np.float32)[0]

        return torch.from_numpy(np.stack([row(index) for index in range(len(actions))]))

    def encode(self, observation: Observation) -> Prefix:
        """The arguments of ``denoise_step`` that stay the same: state, masks and key-value cache."""
        transform = attribute(self.host, "_input_transform", "openpi's Policy")
        values = {key: value[:, -1].cpu().numpy() for key, value in self.read(observation).items()}
        rows = [transform(self._request(values, index)) for index in range(len(observation))]
        inputs = _stacked(rows, self.device)
        prepared = host_module("openpi.models.model", _INSTALL).Observation.from_dict(inputs)
        noise = torch.zeros(len(observation), self.horizon, self.action.dof + self.private_dims, device=self.device)
        model = self.model
        with class_method(model, "sample_actions"):  # openpi compiles it, which would hide its queries
            found = first_query(model, "denoise_step", lambda: model.sample_actions(self.device, prepared, noise=noise))
        return Prefix.of(found)

    def _request(self, values: Mapping[str, NDArray[Any]], row: int) -> dict[str, Any]:
        """What a client would send for one row."""
        request: dict[str, Any] = {key: _picture(value[row]) for key, value in values.items()}
        return {**request, "prompt": self.prompt} if self.prompt else request

    def predict(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """``PI0Pytorch.denoise_step``."""
        return self.model.denoise_step(x_t=x, timestep=time.to(x), **condition.arguments)

    def denoise(self, noise: Tensor, condition: Any, generator: RandomSource = None) -> Tensor:  # noqa: ARG002  (an ODE draws nothing)
        """``sample_actions``'s Euler loop."""
        return euler(self.predict, noise, condition, self._steps)


def _picture(value: NDArray[Any]) -> NDArray[Any]:
    """Pictures in [0, 1], channels first, as uint8, channels last; anything else as it is."""
    return value if value.ndim < _PICTURE_AXES else (value * 255).round().astype(np.uint8).transpose(1, 2, 0)


def _stacked(rows: list[Any], device: torch.device) -> Any:
    """Rows of nested dicts as nested dicts of tensors with a batch axis."""
    if isinstance(rows[0], Mapping):
        return {key: _stacked([row[key] for row in rows], device) for key in rows[0]}
    return torch.from_numpy(np.stack([np.asarray(row) for row in rows])).to(device)


@dataclass(frozen=True, kw_only=True)
class OpenPiCheckpoint:
    """A converted openpi checkpoint folder: ``model.safetensors`` and ``assets/…/norm_stats.json``.

    Attributes:
        path: The folder.
        config: openpi's name of the training config, such as ``"pi05_libero"``.
        action: What its actions mean, after openpi's output transforms.
        inputs: See :class:`OpenPiFlow`.
        prompt: What to do, in words.
        replan_steps: Actions of a chunk to execute; None for all.
        name: In tables and messages.
    """

    path: Path
    config: str
    action: ActionSpec
    inputs: Mapping[str, tuple[str, ...]]
    prompt: str = ""
    replan_steps: int | None = None
    name: str = ""

    def load(self, device: str = "cpu") -> OpenPiFlow:
        """Read it.

        Args:
            device: Where the weights go.

        Raises:
            CheckpointError: If the folder or its PyTorch weights are missing.
            MissingExtraError: If openpi cannot be imported.
        """
        check_file(self.path / "model.safetensors")
        config = host_module("openpi.training.config", _INSTALL).get_config(self.config)
        policy = host_module("openpi.policies.policy_config", _INSTALL).create_trained_policy(config, self.path, pytorch_device=device)
        return OpenPiFlow(
            host=policy, action=self.action, inputs=self.inputs, prompt=self.prompt, replan_steps=self.replan_steps, name=self.name
        )
