"""Policies of real-stanford/diffusion_policy (read at 5ba07ac): U-Net and transformer, low-dimensional and pictures.

Their observations enter in one of four ways (global condition, local condition, transformer tokens, in-painting beside the actions);
whichever it is, the policy's own ``predict_action`` prepares it, up to its call of ``conditional_sample``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robot.adapters.base import AdaptedPolicy
from robot.adapters.hosts import attribute, check_file, first_query, host_module
from robot.adapters.samplers import run_scheduler, scheduler_kind, scheduler_path, scheduler_sampling
from robot.adapters.trust import require_trust
from robot.types import ActionSpec, Observation

if TYPE_CHECKING:
    from flowrl.flow import VariancePreserving
    from flowrl.shapes import RandomSource
    from robot.composition import Sampling

__all__ = ["DiffusionPolicyCheckpoint", "StanfordDiffusion"]

_INSTALL = (
    "clone github.com/real-stanford/diffusion_policy and put the clone on PYTHONPATH, in an environment with dill, hydra-core and zarr; "
    "its own conda environment pins Python 3.9, torch 1.12 and diffusers 0.11 and cannot hold flowrl"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class StanfordDiffusion(AdaptedPolicy):
    """``DiffusionUnetLowdimPolicy``, ``DiffusionUnetImagePolicy``, the hybrid and the transformer ones.

    The chunk begins at the oldest frame. The low-dimensional U-Net executes from index ``n_obs_steps``, one step later than the
    others, unless it was built with ``oa_step_convention``; with ``pred_action_steps_only`` the chunk is the executed part alone.
    Low-dimensional policies take one input, ``obs``: name the sensors that it joins in ``inputs``, in the order of the training data.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("conditional_sample", "predict_action", "model", "noise_scheduler", "normalizer", "n_obs_steps"):
            attribute(self.host, name, "a policy of real-stanford/diffusion_policy")
        if self.action.dof != int(self.host.action_dim):
            raise ValueError(f"{self.name} has actions of {self.host.action_dim} dimensions, its ActionSpec names {self.action.dof}")

    @property
    def kind(self) -> str:
        """What its network predicts."""
        return scheduler_kind(self.host.noise_scheduler)

    @property
    def path(self) -> VariancePreserving:
        """Its noise schedule."""
        return scheduler_path(self.host.noise_scheduler)

    @property
    def history(self) -> int:
        """``n_obs_steps``."""
        return int(self.host.n_obs_steps)

    @property
    def horizon(self) -> int:
        """``horizon``, or ``n_action_steps`` where only those are predicted."""
        return int(self.host.n_action_steps if self._executed_only else self.host.horizon)

    @property
    def first(self) -> int:
        """Index of the first action that the host executes."""
        if self._executed_only:
            return 0
        return self.history - 1 if getattr(self.host, "oa_step_convention", True) else self.history

    @property
    def execute(self) -> int:
        """``n_action_steps``."""
        return int(self.host.n_action_steps)

    @property
    def sampling(self) -> Sampling:
        """Its scheduler's."""
        return scheduler_sampling(self.host.noise_scheduler, int(self.host.num_inference_steps))

    @property
    def private_dims(self) -> int:
        """Observations that are in-painted beside the actions; none where they are a condition."""
        ways = ("obs_as_global_cond", "obs_as_local_cond", "obs_as_cond")
        if any(getattr(self.host, way, False) for way in ways):
            return 0
        return int(self.host.obs_feature_dim if hasattr(self.host, "obs_feature_dim") else self.host.obs_dim)

    @property
    def _executed_only(self) -> bool:
        return bool(getattr(self.host, "pred_action_steps_only", False))

    def host_inputs(self) -> Mapping[str, tuple[str, ...]]:
        """The observations that its normaliser knows."""
        keys = [key for key in self.host.normalizer.params_dict if key != "action"]
        if keys == ["obs"]:
            raise ValueError(f"{self.name} takes one vector 'obs': name the sensors that it joins, inputs={{'obs': (...)}}")
        return {key: (key,) for key in keys}

    def unnormalise(self, actions: Tensor) -> Tensor:
        """``normalizer["action"].unnormalize``."""
        return self.host.normalizer["action"].unnormalize(actions)

    def encode(self, observation: Observation) -> dict[str, Tensor]:
        """The arguments of ``conditional_sample``: conditions, and what is in-painted where."""
        batch = self.read(observation)
        query = first_query(self.host, "conditional_sample", lambda: self.host.predict_action(batch))
        return {name: value for name, value in query.items() if isinstance(value, Tensor)}

    def predict(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """``model``, after the known entries are put back."""
        known = torch.where(condition["condition_mask"], condition["condition_data"].to(x), x)
        if "cond" in condition:
            return self.host.model(known, time.long(), condition["cond"])
        return self.host.model(known, time.long(), local_cond=condition.get("local_cond"), global_cond=condition.get("global_cond"))

    def denoise(self, noise: Tensor, condition: Any, generator: RandomSource = None) -> Tensor:
        """``conditional_sample``."""
        host = self.host
        known = condition["condition_mask"]

        def network(x: Tensor, time: Tensor, given: Any) -> Tensor:
            x[known] = given["condition_data"][known]  # the host's step sees the state with the known entries put back
            return self.predict(x, time, given)

        steps = int(host.num_inference_steps)
        return run_scheduler(host.noise_scheduler, network, noise.clone(), condition, steps, generator, **getattr(host, "kwargs", {}))


@dataclass(frozen=True, kw_only=True)
class DiffusionPolicyCheckpoint:
    """A ``.ckpt`` of real-stanford/diffusion_policy: a dill pickle of config and weights, averaged (EMA) ones where there are.

    Attributes:
        path: The file.
        action: What its actions mean.
        inputs: See :class:`StanfordDiffusion`.
        trust_checkpoint: Load it although unpickling runs code.
        inference_steps: Denoising steps; None for the checkpoint's own.
        name: In tables and messages.
        accept_terminal_snr: See :class:`robot.composition.Member`.
    """

    path: Path
    action: ActionSpec
    inputs: Mapping[str, tuple[str, ...]] | None = None
    trust_checkpoint: bool = False
    inference_steps: int | None = None
    name: str = ""
    accept_terminal_snr: bool = False

    def load(self, device: str = "cpu") -> StanfordDiffusion:
        """Read it.

        Args:
            device: Where the weights go.

        Raises:
            ConfigError: If it is not trusted.
            CheckpointError: If it is missing.
            MissingExtraError: If the host library cannot be imported.
        """
        check_file(self.path)
        require_trust(self.path, trusted=self.trust_checkpoint, reason="it is a dill pickle")
        dill, hydra = host_module("dill", _INSTALL), host_module("hydra.utils", _INSTALL)
        host_module("diffusion_policy", _INSTALL)
        with self.path.open("rb") as file:
            payload = torch.load(file, pickle_module=dill, map_location=device, weights_only=False)
        config = payload["cfg"]
        workspace = hydra.get_class(config._target_)(config, output_dir=str(self.path.parent))
        workspace.load_payload(payload, exclude_keys=["optimizer"], include_keys=[])
        policy = workspace.ema_model if config.training.use_ema else workspace.model
        policy.to(device).eval()
        if self.inference_steps is not None:
            policy.num_inference_steps = self.inference_steps
        return StanfordDiffusion(
            host=policy, action=self.action, inputs=self.inputs, name=self.name, accept_terminal_snr=self.accept_terminal_snr
        )
