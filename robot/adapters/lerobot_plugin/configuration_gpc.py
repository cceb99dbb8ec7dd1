"""The config of the ``gpc`` policy; imported by LeRobot alone."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig

__all__ = ["GpcConfig"]


@PreTrainedConfig.register_subclass("gpc")
@dataclass
class GpcConfig(PreTrainedConfig):  # type: ignore[misc]
    """A composition: LeRobot checkpoints with weights, or a flowrl config.

    Attributes:
        members: Folders of LeRobot checkpoints.
        weights: One for each; >= 0, sum to one.
        operator: ``convex``, ``and``, ``or``, ``fkc`` or ``average``.
        steps: Denoising steps; 0 takes the most of any member.
        sampler: ``ode`` or ``sde``.
        clip: Bound on the composed data, normalised units; 0 for none.
        control_rate_hz: Control steps per second of the environment, for members and environment alike.
        composition: Instead of ``members``: a flowrl config of a composition, a rollout or a search, for members of other kinds.
        rename: LeRobot's key for each sensor that it calls otherwise.
        n_action_steps: Actions of a chunk to execute; 0 takes the fewest of any member.
        seed: Of the noise.
    """

    members: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    operator: str = "convex"
    steps: int = 0
    sampler: str = "ode"
    clip: float = 1.0
    control_rate_hz: float = 10.0
    composition: str = ""
    rename: dict[str, str] = field(default_factory=dict)
    n_action_steps: int = 0
    seed: int = 0

    def validate_features(self) -> None:
        """Members check their own."""

    @property
    def observation_delta_indices(self) -> None:
        """Nothing is trained."""
        return

    @property
    def action_delta_indices(self) -> None:
        """Nothing is trained."""
        return

    @property
    def reward_delta_indices(self) -> None:
        """Nothing is trained."""
        return

    def get_optimizer_preset(self) -> Any:
        """Nothing is trained.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a composition is not trained: train its members, then choose weights with flowrl compose search")

    def get_scheduler_preset(self) -> None:
        """Nothing is trained."""
        return
