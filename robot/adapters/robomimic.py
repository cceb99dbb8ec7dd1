"""robomimic's diffusion policy (github.com/ARISE-Initiative/robomimic, read at d309eae, version 0.5.0; 0.3.0 on PyPI has none)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robot.adapters.base import AdaptedPolicy
from robot.adapters.hosts import attribute, check_file, host_module
from robot.adapters.samplers import run_scheduler, scheduler_kind, scheduler_path, scheduler_sampling
from robot.adapters.trust import require_trust
from robot.types import ActionSpec, Observation

if TYPE_CHECKING:
    from flowrl.flow import VariancePreserving
    from flowrl.shapes import RandomSource
    from robot.composition import Sampling

__all__ = ["RobomimicCheckpoint", "RobomimicDiffusion"]

_INSTALL = (
    "robomimic 0.5 is on GitHub only and pins diffusers==0.11.1 and transformers==4.41.2: install it beside flowrl with pip install "
    "--no-deps git+https://github.com/ARISE-Initiative/robomimic, then psutil, termcolor, tensorboardX and torchvision"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class RobomimicDiffusion(AdaptedPolicy):
    """``DiffusionPolicyUNet`` inside its ``RolloutPolicy``: ε on ``(batch, prediction_horizon, ac_dim)``, actions in [-1, 1].

    The averaged (EMA) networks are used where there are any. Actions are composed as the network gives them after the rollout
    policy's action statistics; a conversion to axis-angle after that is the environment's business.

    Attributes:
        host: ``RolloutPolicy``, or the algorithm itself where nothing was normalised.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("nets", "noise_scheduler", "algo_config", "obs_shapes", "ac_dim"):
            attribute(self.algorithm, name, "robomimic's DiffusionPolicyUNet")
        if self.action.dof != int(self.algorithm.ac_dim):
            raise ValueError(
                f"{self.default_name} has actions of {self.algorithm.ac_dim} dimensions, its ActionSpec names {self.action.dof}"
            )

    @property
    def algorithm(self) -> Any:
        """``DiffusionPolicyUNet``."""
        return getattr(self.host, "policy", self.host)

    @property
    def networks(self) -> Any:
        """``nets["policy"]``, averaged where there is an average."""
        ema = getattr(self.algorithm, "ema", None)
        return (self.algorithm.nets if ema is None else ema.averaged_model)["policy"]

    @property
    def device(self) -> torch.device:
        """The algorithm's."""
        return torch.device(self.algorithm.device)

    @property
    def default_name(self) -> str:
        """The algorithm's class."""
        return type(self.algorithm).__name__

    @property
    def kind(self) -> str:
        """What its U-Net predicts."""
        return scheduler_kind(self.algorithm.noise_scheduler)

    @property
    def path(self) -> VariancePreserving:
        """Its noise schedule."""
        return scheduler_path(self.algorithm.noise_scheduler)

    @property
    def history(self) -> int:
        """``horizon.observation_horizon``."""
        return int(self.algorithm.algo_config.horizon.observation_horizon)

    @property
    def horizon(self) -> int:
        """``horizon.prediction_horizon``."""
        return int(self.algorithm.algo_config.horizon.prediction_horizon)

    @property
    def first(self) -> int:
        """``observation_horizon − 1``."""
        return self.history - 1

    @property
    def execute(self) -> int:
        """``horizon.action_horizon``."""
        return int(self.algorithm.algo_config.horizon.action_horizon)

    @property
    def sampling(self) -> Sampling:
        """Its scheduler's."""
        return scheduler_sampling(self.algorithm.noise_scheduler, self._steps)

    @property
    def _steps(self) -> int:
        config = self.algorithm.algo_config
        return int((config.ddpm if config.ddpm.enabled else config.ddim).num_inference_timesteps)

    def host_inputs(self) -> Mapping[str, tuple[str, ...]]:
        """``obs_shapes``, by the same names."""
        return {key: (key,) for key in self.algorithm.obs_shapes}

    def unnormalise(self, actions: Tensor) -> Tensor:
        """The rollout policy's action statistics, in the order of ``train.action_keys``."""
        stats = getattr(self.host, "action_normalization_stats", None)
        if stats is None:
            return actions
        keys = self.algorithm.global_config.train.action_keys
        offset, scale = (
            torch.cat([torch.as_tensor(stats[key][part]).flatten() for key in keys]).to(actions) for part in ("offset", "scale")
        )
        return offset + scale * actions

    def encode(self, observation: Observation) -> Tensor:
        """``obs_encoder`` on every frame, flattened: ``(batch, history·feature)``."""
        values = self._normalised(self.read(observation))
        frames = {key: value.flatten(0, 1) for key, value in values.items()}
        features = self.networks["obs_encoder"](obs=frames)
        return features.reshape(len(observation), -1)

    def _normalised(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        stats = getattr(self.host, "obs_normalization_stats", None)
        if stats is None:
            return values

        def normal(key: str, value: Tensor) -> Tensor:
            offset, scale = (torch.as_tensor(stats[key][part]).to(value)[0] for part in ("offset", "scale"))
            return (value - offset) / scale

        return {key: normal(key, value) for key, value in values.items()}

    def predict(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """``noise_pred_net``."""
        return self.networks["noise_pred_net"](sample=x, timestep=time.long(), global_cond=condition)

    def denoise(self, noise: Tensor, condition: Any, generator: RandomSource = None) -> Tensor:
        """The loop of ``_get_action_trajectory``."""
        return run_scheduler(self.algorithm.noise_scheduler, self.predict, noise, condition, self._steps, generator)


@dataclass(frozen=True, kw_only=True)
class RobomimicCheckpoint:
    """A ``.pth`` of robomimic: a pickle of weights, config and statistics.

    robomimic's EMA helper is diffusers 0.11's, which newer ones no longer have: the averaged weights are loaded as the weights.

    Attributes:
        path: The file.
        action: What its actions mean.
        inputs: See :class:`robot.adapters.base.AdaptedPolicy`.
        trust_checkpoint: Load it although unpickling runs code.
        name: In tables and messages.
        accept_terminal_snr: See :class:`robot.composition.Member`.
    """

    path: Path
    action: ActionSpec
    inputs: Mapping[str, tuple[str, ...]] | None = None
    trust_checkpoint: bool = False
    name: str = ""
    accept_terminal_snr: bool = False

    def load(self, device: str = "cpu") -> RobomimicDiffusion:
        """Read it.

        Args:
            device: Where the weights go.

        Raises:
            ConfigError: If it is not trusted, or of another algorithm.
            CheckpointError: If it is missing.
            MissingExtraError: If robomimic cannot be imported.
        """
        check_file(self.path)
        require_trust(self.path, trusted=self.trust_checkpoint, reason="it is a pickle")
        files = host_module("robomimic.utils.file_utils", _INSTALL)
        checkpoint = torch.load(self.path, map_location="cpu", weights_only=False)
        if checkpoint["algo_name"] != "diffusion_policy":
            raise ValueError(
                f"{self.path} is robomimic's {checkpoint['algo_name']!r}, which has no Gaussian path; composable is 'diffusion_policy'"
            )
        policy, _ = files.policy_from_checkpoint(device=torch.device(device), ckpt_dict=averaged(checkpoint))
        return RobomimicDiffusion(
            host=policy, action=self.action, inputs=self.inputs, name=self.name, accept_terminal_snr=self.accept_terminal_snr
        )


def averaged(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint with its averaged weights as the weights, and without the averaging.

    Args:
        checkpoint: What robomimic saved.
    """
    model = dict(checkpoint["model"])
    average = model.pop("ema", None)
    if average is None:
        return dict(checkpoint)
    config = json.loads(checkpoint["config"])
    config["algo"]["ema"]["enabled"] = False
    return {**checkpoint, "model": {**model, "nets": average}, "config": json.dumps(config)}
