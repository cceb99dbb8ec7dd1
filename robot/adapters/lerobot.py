"""LeRobot policies: ``diffusion``, ``pi0``, ``pi05`` and ``smolvla`` (github.com/huggingface/lerobot, read at 0.4.4 and 0.6.2).

LeRobot keeps its normalisers outside the policy, in a pre- and a postprocessor pipeline: both belong to the adapter. Its weights are
safetensors, so no file here has to be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.errors import close_match
from robot.adapters.base import AdaptedPolicy, PresentFlow
from robot.adapters.hosts import attribute, check_file, class_method, first_query, host_module
from robot.adapters.prefix import Prefix
from robot.adapters.samplers import euler, run_scheduler, scheduler_kind, scheduler_path, scheduler_sampling
from robot.composition import Sampling
from robot.types import ActionSpec, Observation

if TYPE_CHECKING:
    from flowrl.flow import VariancePreserving
    from flowrl.shapes import RandomSource

__all__ = ["LeRobotDiffusion", "LeRobotFlow", "LeRobotPolicyFile", "adapt_lerobot"]

_INSTALL = (
    "LeRobot pins its surroundings (0.4.4: torch < 2.11, diffusers < 0.36; 0.6: Python >= 3.12, torch < 2.12, numpy >= 2), so make an "
    "environment of its own with Python 3.12: pip install 'lerobot[diffusion,pi,smolvla]>=0.6' flowrl-torch"
)
_NO_PATH = "has no Gaussian path: there is no score to compose"
_REFUSED = {
    "act": f"ACT regresses a chunk from a latent variable and {_NO_PATH}",
    "vqbet": f"VQ-BeT samples discrete codes and {_NO_PATH}",
    "tdmpc": f"TD-MPC plans with a world model and {_NO_PATH}",
    "pi0_fast": f"pi0-FAST generates action tokens one by one and {_NO_PATH}",
    "pi0fast": f"pi0-FAST generates action tokens one by one and {_NO_PATH}",
    "sac": f"SAC's actor is one Gaussian and {_NO_PATH}",
    "gaussian_actor": f"the actor is one Gaussian and {_NO_PATH}",
    "evo1": "EVO-1 starts from uniform noise in [-1, 1]: its velocity determines no Gaussian score",
    "xvla": "X-VLA mixes its prediction with one fixed noise at every step: that is no ODE and determines no score",
}
_FLOWS = ("pi0", "pi05", "smolvla")


@dataclass(frozen=True, kw_only=True, eq=False)
class LeRobotDiffusion(AdaptedPolicy):
    """``lerobot.policies.diffusion``'s ``DiffusionPolicy``: a U-Net on ``(batch, horizon, dof)``, ε or sample, DDPM or DDIM.

    Its chunk begins at the oldest frame; only ``first … first + execute − 1`` are executed, but all of it is composed.

    Attributes:
        preprocessor: LeRobot's pipeline from raw to normalised observations.
        postprocessor: LeRobot's pipeline from normalised to raw actions.
    """

    preprocessor: Callable[[dict[str, Any]], Mapping[str, Any]]
    postprocessor: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("diffusion.unet", "diffusion.noise_scheduler", "diffusion.conditional_sample", "config.n_obs_steps"):
            attribute(self.host, name, "LeRobot's DiffusionPolicy")

    @property
    def kind(self) -> str:
        """What its U-Net predicts."""
        return scheduler_kind(self.host.diffusion.noise_scheduler)

    @property
    def path(self) -> VariancePreserving:
        """Its noise schedule."""
        return scheduler_path(self.host.diffusion.noise_scheduler)

    @property
    def history(self) -> int:
        """``n_obs_steps``."""
        return int(self.host.config.n_obs_steps)

    @property
    def horizon(self) -> int:
        """``horizon``."""
        return int(self.host.config.horizon)

    @property
    def first(self) -> int:
        """``n_obs_steps − 1``."""
        return self.history - 1

    @property
    def execute(self) -> int:
        """``n_action_steps``."""
        return int(self.host.config.n_action_steps)

    @property
    def sampling(self) -> Sampling:
        """Its scheduler's."""
        return scheduler_sampling(self.host.diffusion.noise_scheduler, int(self.host.diffusion.num_inference_steps))

    def host_inputs(self) -> Mapping[str, tuple[str, ...]]:
        """``config.input_features``, by the same names."""
        return _features(self.host)

    def unnormalise(self, actions: Tensor) -> Tensor:
        """The postprocessor."""
        return self.postprocessor(actions)

    def encode(self, observation: Observation) -> Tensor:
        """``global_cond``, ``(batch, history·(state + cameras·feature))``."""
        batch = dict(self.preprocessor(self.read(observation)))
        if cameras := list(self.host.config.image_features):
            batch["observation.images"] = torch.stack([batch[camera] for camera in cameras], dim=-4)
        model = self.host.diffusion
        return first_query(model, "conditional_sample", lambda: model.generate_actions(batch))["global_cond"]

    def predict(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """``diffusion.unet``."""
        return self.host.diffusion.unet(x, time.long(), global_cond=condition)

    def denoise(self, noise: Tensor, condition: Any, generator: RandomSource = None) -> Tensor:
        """``DiffusionModel.conditional_sample``."""
        model = self.host.diffusion
        return run_scheduler(model.noise_scheduler, self.predict, noise, condition, int(model.num_inference_steps), generator)


@dataclass(frozen=True, kw_only=True, eq=False)
class LeRobotFlow(PresentFlow):
    """LeRobot's ``pi0``, ``pi05`` and ``smolvla``: velocity noise − data on ``(batch, chunk_size, max_action_dim)``, time 1 → 0.

    Dimensions after the robot's own are padding: they evolve under this policy alone. The prefix (pictures, language, state) is
    encoded once per chunk into a key-value cache; a query is the policy's own ``denoise_step``.

    Attributes:
        preprocessor: LeRobot's pipeline from raw to normalised observations; it tokenises the task.
        postprocessor: LeRobot's pipeline from normalised to raw actions.
        task: What to do, in words.
    """

    preprocessor: Callable[[dict[str, Any]], Mapping[str, Any]]
    postprocessor: Callable[[Tensor], Tensor]
    task: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        attribute(self.host, "model.denoise_step", "a flow policy of LeRobot (pi0, pi05, smolvla)")
        config = self.host.config
        rtc = getattr(config, "rtc_config", None)
        for setting, reason in {
            "adapt_to_pi_aloha": "its gripper transform is not affine",
            "use_relative_actions": "its actions are relative to the state, which its normaliser does not show",
            "use_visual_memory": "its memory counts the host's own control steps",
            "use_proprioceptive_memory": "its memory counts the host's own control steps",
        }.items():
            if getattr(config, setting, False):
                raise ValueError(f"{type(self.host).__name__} has {setting}=True and cannot be composed: {reason}")
        if rtc is not None and rtc.enabled:
            raise ValueError(f"{type(self.host).__name__} has real-time chunking on; set config.rtc_config=None to compose it")

    @property
    def horizon(self) -> int:
        """``chunk_size``."""
        return int(self.host.config.chunk_size)

    @property
    def execute(self) -> int:
        """``n_action_steps``."""
        return int(self.host.config.n_action_steps)

    @property
    def sampling(self) -> Sampling:
        """Euler steps without clipping."""
        return Sampling(steps=self._steps, sampler="ode", clip=None)

    @property
    def private_dims(self) -> int:
        """Padding up to ``max_action_dim``."""
        return int(self.host.config.max_action_dim) - self.action.dof

    @property
    def _steps(self) -> int:
        config = self.host.config
        return int(config.num_inference_steps if hasattr(config, "num_inference_steps") else config.num_steps)

    def host_inputs(self) -> Mapping[str, tuple[str, ...]]:
        """``config.input_features`` without the empty cameras, by the same names."""
        return {key: names for key, names in _features(self.host).items() if "empty_camera" not in key}

    def unnormalise(self, actions: Tensor) -> Tensor:
        """The postprocessor."""
        return self.postprocessor(actions)

    def encode(self, observation: Observation) -> Prefix:
        """The arguments of ``denoise_step`` that stay the same: masks, key-value cache and, for pi0, the state."""
        inputs = {key: value[:, -1] for key, value in self.read(observation).items()}
        batch = dict(self.preprocessor({**inputs, "task": [self.task] * len(observation)}))
        model = self.host.model
        noise = torch.zeros(len(observation), self.horizon, self.action.dof + self.private_dims, device=self.device)
        with class_method(model, "sample_actions"):  # a compiled loop would hide its queries
            found = first_query(model, "denoise_step", lambda: self.host.predict_action_chunk(batch, noise=noise))
        return Prefix.of(found)

    def predict(self, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """``model.denoise_step``."""
        return self.host.model.denoise_step(x_t=x, timestep=time.to(x), **condition.arguments)

    def denoise(self, noise: Tensor, condition: Any, generator: RandomSource = None) -> Tensor:  # noqa: ARG002  (an ODE draws nothing)
        """``sample_actions``'s Euler loop."""
        return euler(self.predict, noise, condition, self._steps)


@dataclass(frozen=True, kw_only=True)
class LeRobotPolicyFile:
    """A LeRobot checkpoint folder: ``config.json``, ``model.safetensors`` and the two processor pipelines.

    Attributes:
        path: The folder, often called ``pretrained_model``.
        action: What its actions mean; LeRobot's files do not say.
        inputs: See :class:`robot.adapters.base.AdaptedPolicy`.
        task: For pi0, pi05 and smolvla: what to do, in words.
        name: In tables and messages.
        accept_terminal_snr: See :class:`robot.composition.Member`.
    """

    path: Path
    action: ActionSpec
    inputs: Mapping[str, tuple[str, ...]] | None = None
    task: str = ""
    name: str = ""
    accept_terminal_snr: bool = False

    def load(self, device: str = "cpu") -> LeRobotDiffusion | LeRobotFlow:
        """Read it.

        Args:
            device: Where the weights go.

        Raises:
            CheckpointError: If the folder or its weights are missing.
            MissingExtraError: If LeRobot cannot be imported.
            ValueError: If the policy cannot be composed, with the reason.
        """
        check_file(self.path / "model.safetensors")  # LeRobot's pi0 goes on with random weights where they are missing
        factory = host_module("lerobot.policies.factory", _INSTALL)
        config = host_module("lerobot.configs.policies", _INSTALL).PreTrainedConfig.from_pretrained(str(self.path))
        config.device = device
        refuse(config.type)
        policy = factory.get_policy_class(config.type).from_pretrained(str(self.path), config=config)
        overrides = {"device_processor": {"device": device}}
        before, after = factory.make_pre_post_processors(config, pretrained_path=str(self.path), preprocessor_overrides=overrides)
        return adapt_lerobot(
            policy,
            before,
            after,
            action=self.action,
            inputs=self.inputs,
            task=self.task,
            name=self.name,
            accept_terminal_snr=self.accept_terminal_snr,
        )


def adapt_lerobot(
    policy: Any,
    preprocessor: Callable[[dict[str, Any]], Mapping[str, Any]],
    postprocessor: Callable[[Tensor], Tensor],
    *,
    task: str = "",
    **shared: Any,
) -> LeRobotDiffusion | LeRobotFlow:
    """The adapter that fits a loaded LeRobot policy.

    Args:
        policy: A ``PreTrainedPolicy``.
        preprocessor: Its pipeline from raw to normalised observations, from ``make_pre_post_processors``.
        postprocessor: Its pipeline from normalised to raw actions.
        task: What to do, in words; only for those that read it.
        shared: ``action``, and what else :class:`robot.adapters.base.AdaptedPolicy` takes.

    Raises:
        ValueError: If the policy cannot be composed, with the reason.
    """
    kind = getattr(policy, "name", type(policy).__name__)
    refuse(kind)
    if kind == "diffusion":
        return LeRobotDiffusion(host=policy, preprocessor=preprocessor, postprocessor=postprocessor, **shared)
    return LeRobotFlow(host=policy, preprocessor=preprocessor, postprocessor=postprocessor, task=task, **shared)


def refuse(kind: str) -> None:
    """Say why a type of LeRobot policy cannot be composed.

    Args:
        kind: LeRobot's name of it, such as ``"act"``.

    Raises:
        ValueError: If it cannot be.
    """
    supported = ("diffusion", *_FLOWS)
    if kind in _REFUSED:
        raise ValueError(f"LeRobot's {kind!r} cannot be composed: {_REFUSED[kind]}; composable are {', '.join(supported)}")
    if kind not in supported:
        raise ValueError(f"there is no adapter for LeRobot's {kind!r}{close_match(kind, supported)}")


def _features(host: Any) -> dict[str, tuple[str, ...]]:
    return {key: (key,) for key in host.config.input_features}
