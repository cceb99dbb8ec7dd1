"""The ``gpc`` policy; imported by LeRobot alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from flowrl.config import instantiate, load_config
from flowrl.errors import ConfigError
from robot.adapters.lerobot import LeRobotPolicyFile
from robot.adapters.lerobot_plugin.configuration_gpc import GpcConfig
from robot.adapters.lerobot_plugin.driver import BatchDriver, with_task
from robot.composition import Sampling
from robot.gpc import GPCPolicy
from robot.types import ActionSpec

__all__ = ["GpcPolicy"]


class GpcPolicy(PreTrainedPolicy):  # type: ignore[misc]
    """Several policies composed at test time, as LeRobot's evaluation drives a policy."""

    config_class = GpcConfig
    name = "gpc"

    def __init__(self, config: GpcConfig, **_: Any) -> None:
        """Load the members.

        Args:
            config: Which they are.

        Raises:
            ConfigError: If the config names no members, or both members and a composition.
            ValueError: If they cannot be composed.
        """
        super().__init__(config)
        policy = compose(config)
        members = getattr(policy, "policies", (policy,))
        self.hosts = nn.ModuleList([host for member in members if isinstance(host := getattr(member, "host", None), nn.Module)])
        self._policy, self._task = policy, ""
        self._driver = BatchDriver(policy, seed=config.seed, rename=config.rename)

    def reset(self) -> None:
        """Begin the next batch of episodes."""
        self._driver.reset()

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The action of this control step, ``(batch, dof)``, physical units."""
        self._read_task(batch)
        return self._driver.next_action(batch)

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The actions to execute from this control step on, ``(batch, step, dof)``, physical units."""
        self._read_task(batch)
        return self._driver.next_chunk(batch)

    def _read_task(self, batch: dict[str, Any]) -> None:
        tasks = sorted(set(batch.get("task") or [""]))
        if len(tasks) > 1:
            raise ValueError(f"one composition does one task at a time, got {tasks}; evaluate them one by one")
        if tasks[0] != self._task:
            self._task = tasks[0]
            self._driver.policy = with_task(self._policy, self._task)

    def get_optim_params(self) -> dict[str, Any]:
        """Nothing is trained."""
        return {}

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, None]:
        """Nothing is trained.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a composition is not trained: train its members, then choose weights with flowrl compose search")


def compose(config: GpcConfig) -> Any:
    """The policy that a config describes.

    Args:
        config: Of the ``gpc`` policy.

    Raises:
        ConfigError: If it names no members, or both members and a composition.
    """
    if bool(config.composition) == bool(config.members):
        raise ConfigError("give either policy.members (LeRobot folders) with policy.weights, or policy.composition (a flowrl config)")
    if config.composition:
        described = load_config(config.composition)
        source = described.get("composition") or described.get("policy") or described  # of a search, of a rollout, or alone
        return instantiate(source).load(config.device)
    names = tuple(f"action_{index}" for index in range(config.action_feature.shape[0]))
    action = ActionSpec(names=names, control_rate_hz=config.control_rate_hz)
    policies = tuple(LeRobotPolicyFile(path=Path(path), action=action, name=Path(path).name).load(config.device) for path in config.members)
    steps = config.steps or max(policy.sampling.steps for policy in policies)
    return GPCPolicy(
        policies=policies,
        weights=tuple(config.weights),
        operator=config.operator,
        sampling=Sampling(steps=steps, sampler=config.sampler, clip=config.clip or None),  # type: ignore[arg-type]
        execute_steps=config.n_action_steps or None,
    )
