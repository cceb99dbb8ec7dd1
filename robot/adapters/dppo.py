"""DPPO's diffusion policies (github.com/irom-princeton/dppo, read at cc7234a): pre-trained and fine-tuned."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import ConfigError
from flowrl.flow import VariancePreserving
from flowrl.shapes import RandomSource, randn
from robot.adapters.hosts import attribute, check_file
from robot.adapters.hydra_hosts import HydraPolicy, MinMax, build_model, read_config
from robot.composition import Sampling
from robot.types import ActionSpec

__all__ = ["DPPOCheckpoint", "DPPODiffusion"]

_INSTALL = (
    "clone github.com/irom-princeton/dppo, put the clone on PYTHONPATH (its packages are called model, agent and util) and pip install "
    "hydra-core einops; its own environment pins torch 2.4 and gym 0.22 and cannot hold flowrl, but the networks need neither"
)
_SMALLEST_STD = 1e-3  # of the steps before the last, in the host's deterministic evaluation


@dataclass(frozen=True, kw_only=True, eq=False)
class DPPODiffusion(HydraPolicy):
    """``DiffusionModel`` and its relatives (``VPGDiffusion``, ``PPODiffusion``, ``DiffusionEval``): ε or sample, own cosine schedule.

    The schedule is squaredcos_cap_v2 with as many timesteps as denoising steps, often 20. A fine-tuned policy answers with its
    pre-trained network above ``ft_denoising_steps`` and with its fine-tuned one below.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("network", "p_mean_var", "alphas_cumprod", "horizon_steps", "denoising_steps", "predict_epsilon"):
            attribute(self.host, name, "DPPO's DiffusionModel")
        if self.action.dof != int(self.host.action_dim):
            raise ValueError(f"{self.name} has actions of {self.host.action_dim} dimensions, its ActionSpec names {self.action.dof}")

    @property
    def kind(self) -> str:
        """ε, or the clean action."""
        return "epsilon" if self.host.predict_epsilon else "sample"

    @property
    def path(self) -> VariancePreserving:
        """``alphas_cumprod``."""
        return VariancePreserving(self.host.alphas_cumprod)

    @property
    def sampling(self) -> Sampling:
        """DDPM over all timesteps, or DDIM over ``ddim_steps``; predicted data clipped at ``denoised_clip_value``."""
        ddim = bool(self.host.use_ddim)
        steps = int(self.host.ddim_steps if ddim else self.host.denoising_steps)
        return Sampling(steps=steps, sampler="ode" if ddim else "sde", clip=self.host.denoised_clip_value)

    def predict(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """``actor``, or ``actor_ft`` for the rows below the fine-tuned timesteps."""
        host, time, x = self.host, time.long(), x.contiguous()
        base = getattr(host, "actor", host.network)
        tuned = time < self._tuned_below
        if not bool(tuned.any()):
            return base(x, time, cond=condition)
        fine = host.actor_ft(x, time, cond=condition)
        return fine if bool(tuned.all()) else torch.where(tuned[:, None, None], fine, base(x, time, cond=condition))

    @property
    def _tuned_below(self) -> int:
        """Timesteps below this are the fine-tuned network's."""
        if not hasattr(self.host, "actor_ft"):
            return 0
        stride = self.host.denoising_steps // self.host.ddim_steps if self.host.use_ddim else 1
        return int(self.host.ft_denoising_steps) * stride

    def denoise(self, noise: Tensor, condition: Any, generator: RandomSource = None) -> Tensor:
        """The loop of ``forward(cond, deterministic=True)`` around the host's ``p_mean_var``."""
        host, x = self.host, noise
        times = host.ddim_t.tolist() if host.use_ddim else list(range(int(host.denoising_steps)))[::-1]
        asks = {"deterministic": True} if "deterministic" in inspect.signature(host.p_mean_var).parameters else {}
        for index, timestep in enumerate(times):
            time, place = (torch.full((len(x),), value, dtype=torch.long, device=x.device) for value in (timestep, index))
            mean, log_variance = host.p_mean_var(x=x.contiguous(), t=time, cond=condition, index=place, **asks)[:2]
            step_noise = randn(x.shape, generator, device=x.device).clamp(-host.randn_clip_value, host.randn_clip_value)
            last = host.use_ddim or timestep == 0
            x = mean if last else mean + (0.5 * log_variance).exp().clamp(min=_SMALLEST_STD) * step_noise
        bound = host.final_action_clip_value
        return x if bound is None else x.clamp(-bound, bound)


@dataclass(frozen=True, kw_only=True)
class DPPOCheckpoint:
    """A ``state_*.pt`` of DPPO with the evaluation config that builds its model.

    Attributes:
        path: The weights; they load without trust.
        config: The host's hydra YAML, such as ``cfg/robomimic/eval/lift/eval_diffusion_mlp.yaml``.
        action: What its actions mean.
        inputs: See :class:`robot.adapters.hydra_hosts.HydraPolicy`; its order is the config's ``low_dim_keys``.
        normalization: The ``normalization.npz`` of its data; None only for configs without one.
        trust_checkpoint: Load the config although it runs code.
        name: In tables and messages.
    """

    path: Path
    config: Path
    action: ActionSpec
    inputs: Mapping[str, tuple[str, ...]]
    normalization: Path | None = None
    trust_checkpoint: bool = False
    name: str = ""

    def load(self, device: str = "cpu") -> DPPODiffusion:
        """Read it.

        Args:
            device: Where the weights go.

        Raises:
            ConfigError: If the config is not trusted, or needs a normalisation that is not given.
            CheckpointError: If a file is missing.
            MissingExtraError: If hydra or DPPO cannot be imported.
        """
        config = read_config(self.config, trusted=self.trust_checkpoint)
        if self.normalization is None and "normalization_path" in config:
            raise ConfigError(f"{self.config} normalises its data: give the normalization.npz that belongs to {self.path}")
        config.model.network_path = str(check_file(self.path))
        # 26 of DPPO's 27 evaluation configs still call the module by its former name.
        config.model["_target_"] = str(config.model["_target_"]).replace("diffusion_eval_ft.", "diffusion_eval.")
        return DPPODiffusion(
            host=build_model(config, _INSTALL, device),
            action=self.action,
            inputs=self.inputs,
            normalization=None if self.normalization is None else MinMax.read(self.normalization),
            cond_steps=int(config.cond_steps),
            act_steps=int(config.act_steps),
            name=self.name,
        )
