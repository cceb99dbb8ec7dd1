"""What a policy is besides its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowrl.errors import ConfigError
from robot.composition import Sampling
from robot.learning.blocks import NetworkConfig
from robot.learning.encoders import EncoderConfig, ObservationEncoder, SensorStats
from robot.learning.process import Process
from robot.types import ActionSpec

if TYPE_CHECKING:
    from torch import nn

    from robot.normalise import NormStats
    from robot.policies import FlowPolicy

__all__ = ["Recipe", "check_chunk"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a policy is besides its weights; the checkpoint fixes it.

    Attributes:
        process: What it was trained to undo.
        encoder: Observation to features.
        network: The backbone.
        sensors: Name and shape of one frame of each sensor that it needs, as a policy sees it. Older files have a mapping, in which no
            sensor could be called ``target``.
        action: What its actions mean.
        horizon: Control steps of a chunk.
        first: Index of the present control step in a chunk.
        execute: Actions of a chunk to execute before the next one is asked for.
        sampling: How chunks are drawn.
        name: For reports.

    Raises:
        ConfigError: If the executed actions do not lie inside the chunk.
    """

    process: Process
    encoder: EncoderConfig
    network: NetworkConfig
    sensors: tuple[tuple[str, tuple[int, ...]], ...] | Mapping[str, tuple[int, ...]]
    action: ActionSpec
    horizon: int
    first: int
    execute: int
    sampling: Sampling = field(default_factory=Sampling)
    name: str = ""

    def __post_init__(self) -> None:
        check_chunk(self.horizon, self.first, self.execute)

    def build(self, stats: Mapping[str, SensorStats] | None = None) -> tuple[ObservationEncoder, nn.Module]:
        """Encoder and network with fresh weights from torch's global generator.

        Args:
            stats: Of the sensors; None where weights and statistics will be loaded.
        """
        encoder = self.encoder.build(stats or {name: SensorStats(shape=tuple(shape)) for name, shape in dict(self.sensors).items()})
        return encoder, self.network.build(self.action.dof, self.horizon, encoder.width)

    def policy(self, encoder: ObservationEncoder, network: nn.Module, stats: NormStats) -> FlowPolicy:
        """The policy that these modules make."""
        from robot.policies import FlowPolicy

        return FlowPolicy(
            encoder=encoder,
            network=network,
            process=self.process,
            stats=stats,
            action=self.action,
            horizon=self.horizon,
            first=self.first,
            execute=self.execute,
            sampling=self.sampling,
            name=self.name,
        )


def check_chunk(horizon: int, first: int, execute: int) -> None:
    """Refuse executed actions outside the chunk.

    Raises:
        ConfigError: If ``first … first + execute`` does not lie inside the horizon.
    """
    if horizon < 1 or first < 0 or execute < 1 or first + execute > horizon:
        raise ConfigError(
            f"a chunk of horizon={horizon} that begins at first={first} cannot give execute={execute} actions; "
            "first + execute must be at most the horizon (first is history - 1 where it is not given)"
        )
