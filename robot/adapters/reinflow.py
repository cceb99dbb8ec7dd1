"""ReinFlow's rectified flows (github.com/ReinFlow/ReinFlow, read at aed2819)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.errors import CheckpointError, ConfigError
from flowrl.flow import RectifiedFlow
from robot.adapters.hosts import attribute, check_file
from robot.adapters.hydra_hosts import HydraPolicy, MinMax, build_model, read_config
from robot.composition import Sampling
from robot.types import ActionSpec

if TYPE_CHECKING:
    from flowrl.shapes import RandomSource

__all__ = ["ReinFlowCheckpoint", "ReinFlowPolicy"]

_INSTALL = (
    "clone github.com/ReinFlow/ReinFlow, put the clone on PYTHONPATH (its packages are called model, agent and util) and pip install "
    "hydra-core einops; its own environment pins gym 0.22 and cannot hold flowrl, but the networks do not need it"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReinFlowPolicy(HydraPolicy):
    """``ReFlow``: velocity action − noise, time 0 (noise) → 1 (action); flipped here to flowrl's noise − data and 1 → 0.

    Alone it samples as the host does, which is not a plain Euler grid: times ``linspace(0, 1, steps)``, so the last query is at the clean
    end, steps of ``1/steps``, and a clamp to ``act_range`` after each. In a composition it is asked at the composition's times.

    Attributes:
        steps: Denoising steps; the host's config chooses them at evaluation.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if "Shortcut" in type(self.host).__name__:
            raise ValueError("a shortcut flow predicts jumps of a given length, not the velocity at one noise level; composable is ReFlow")
        for name in ("network", "act_range", "horizon_steps"):
            attribute(self.host, name, "ReinFlow's ReFlow; load a fine-tuned PPOFlow into a ReFlow, as its evaluation does")
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if self.action.dof != int(self.host.action_dim):
            raise ValueError(f"{self.name} has actions of {self.host.action_dim} dimensions, its ActionSpec names {self.action.dof}")

    @property
    def kind(self) -> str:
        """Velocity, noise − data after the flip."""
        return "velocity"

    @property
    def path(self) -> RectifiedFlow:
        """A rectified flow."""
        return RectifiedFlow()

    @property
    def sampling(self) -> Sampling:
        """Euler; data clipped to the larger end of ``act_range``."""
        return Sampling(steps=self.steps, sampler="ode", clip=max(abs(float(bound)) for bound in self.host.act_range))

    def predict(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """``−network`` at host time ``1 − time``."""
        return -self.host.network(x.contiguous(), 1 - time.to(x), condition)

    def denoise(self, noise: Tensor, condition: Any, generator: RandomSource = None) -> Tensor:  # noqa: ARG002  (an ODE draws nothing)
        """``ReFlow.sample`` with ``clip_intermediate_actions``."""
        x = noise
        for time in torch.linspace(0, 1, self.steps, device=x.device):
            velocity = self.host.network(x.contiguous(), time.expand(len(x)), condition)
            x = (x + velocity * (1 / self.steps)).clamp(*self.host.act_range)
        return x


@dataclass(frozen=True, kw_only=True)
class ReinFlowCheckpoint:
    """A ``state_*.pt`` of ReinFlow with the evaluation config that builds its model.

    Attributes:
        path: The weights, pre-trained or fine-tuned; they load without trust.
        config: The host's hydra YAML, such as ``cfg/gym/eval/hopper-medium-v2/eval_reflow_mlp.yaml``.
        action: What its actions mean.
        inputs: See :class:`robot.adapters.hydra_hosts.HydraPolicy`.
        steps: Denoising steps.
        normalization: The ``normalization.npz`` of its data; None only for configs without one.
        trust_checkpoint: Load the config although it runs code.
        name: In tables and messages.
    """

    path: Path
    config: Path
    action: ActionSpec
    inputs: Mapping[str, tuple[str, ...]]
    steps: int = 4
    normalization: Path | None = None
    trust_checkpoint: bool = False
    name: str = ""

    def load(self, device: str = "cpu") -> ReinFlowPolicy:
        """Read it.

        Args:
            device: Where the weights go.

        Raises:
            ConfigError: If the config is not trusted, or needs a normalisation that is not given.
            CheckpointError: If a file is missing or holds no flow.
            MissingExtraError: If hydra or ReinFlow cannot be imported.
        """
        config = read_config(self.config, trusted=self.trust_checkpoint)
        if self.normalization is None and "normalization_path" in config:
            raise ConfigError(f"{self.config} normalises its data: give the normalization.npz that belongs to {self.path}")
        weights = flow_weights(check_file(self.path))
        config.model.seed = None  # else ReFlow seeds torch and numpy for the whole process
        model = build_model(config, _INSTALL, device)
        model.load_state_dict(weights)
        return ReinFlowPolicy(
            host=model,
            action=self.action,
            inputs=self.inputs,
            steps=self.steps,
            normalization=None if self.normalization is None else MinMax.read(self.normalization),
            cond_steps=int(config.cond_steps),
            act_steps=int(config.act_steps),
            name=self.name,
        )


def flow_weights(path: Path) -> dict[str, Tensor]:
    """A ``ReFlow``'s weights from a checkpoint: the averaged ones of pre-training, or the fine-tuned actor's.

    Args:
        path: Of the checkpoint.

    Raises:
        CheckpointError: If it holds neither.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for part in ("ema", "model", "policy"):
        state = saved.get(part, {})
        tuned = {key.replace("actor_ft.policy.", "network."): value for key, value in state.items() if key.startswith("actor_ft.policy.")}
        plain = {key: value for key, value in state.items() if key.startswith("network.")}
        if tuned or plain:
            return tuned or plain
    raise CheckpointError(f"{path} holds no network.* and no actor_ft.policy.* weights, but {', '.join(saved)}: it is no flow of ReinFlow")
