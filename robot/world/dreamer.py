"""The module that accelerate wraps for a world-action model, and the demonstrations as it sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowrl.flow import Condition, flow_matching_error
from flowrl.shapes import state_mean
from robot.learning.windows import Windows
from robot.types import Observation
from robot.world.denoising import JointField
from robot.world.tasks import TASK_SENSOR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from robot.world.latents import LatentCodec
    from robot.world.recipe import WorldModules

__all__ = ["Dreamer", "LatentWindows"]

_LATENTS = "latents"
_AT_ONCE = 1024  # frames encoded in one pass


class Dreamer(nn.Module):
    """``(batch, 2)`` losses of frames and of actions, given what was seen."""

    def __init__(self, modules: WorldModules) -> None:
        """Hold what is trained: the codec is not."""
        super().__init__()
        self.network, self.encoder = modules.network, modules.encoder

    def condition(self, observed: Tensor, seen: Mapping[str, Tensor], draws: Tensor | None = None) -> Condition:
        """What the field is conditioned on; see :meth:`robot.world_action.WorldActionModel.condition`.

        Args:
            observed: Latents ``(batch, observed, token, channel)``.
            seen: The encoder's sensors ``(batch, history, ...)``, and the task where there are several.
            draws: Uniform numbers of the encoder's augmentation, ``(batch, draws)``.
        """
        parts = [] if self.encoder is None else [self.encoder(Observation(seen), draws)]
        parts += [seen[TASK_SENSOR][:, -1]] if TASK_SENSOR in seen else []
        return Condition({"observed": observed} | ({"features": torch.cat(parts, dim=1)} if parts else {}))

    def forward(
        self, data: Tensor, noise: Tensor, times: Tensor, observed: Tensor, seen: Mapping[str, Tensor], draws: Tensor | None = None
    ) -> Tensor:
        """The flow-matching error of each stream, mean over its numbers.

        Args:
            data: Packed latents and normalised actions, see :class:`robot.world.layout.Layout`.
            noise: Packed, of the same shape.
            times: ``(batch, frame + 1)``.
            observed: See :meth:`condition`.
            seen: See :meth:`condition`.
            draws: See :meth:`condition`.
        """
        layout = self.network.layout
        error = flow_matching_error(JointField(network=self.network), data, noise, times, self.condition(observed, seen, draws))
        return torch.stack([state_mean(layout.latents(error)), state_mean(layout.actions(error))], dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentWindows:
    """Windows whose frames are encoded once and for all.

    Attributes:
        latents: With latents in the place of sensors.
        beside: With the sensors that are seen as they are, and the task.
        observed: Latest frames that the model is shown.
    """

    latents: Windows
    beside: Windows
    observed: int

    @classmethod
    @torch.no_grad()
    def of(cls, windows: Windows, codec: LatentCodec, kept: tuple[str, ...], observed: int) -> LatentWindows:
        """Encode every frame.

        Args:
            windows: On the codec's device.
            codec: Frames to latents.
            kept: Sensors that are seen as they are.
            observed: Latest frames that the model is shown.
        """
        places = torch.arange(len(windows.actions), device=windows.actions.device)
        latents = torch.cat([codec.encode(windows.at(part[:, None]))[:, 0] for part in places.split(_AT_ONCE)])
        return cls(
            latents=replace(windows, frames={_LATENTS: latents}),
            beside=replace(windows, frames={name: windows.frames[name] for name in kept}),
            observed=observed,
        )

    def __len__(self) -> int:
        """How many windows."""
        return len(self.latents)

    def shown(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents of the frames seen ``(batch, observed, token, channel)``, and what is seen beside them ``(batch, history, ...)``."""
        seen = dict(self.beside.observation(rows).values) if self.beside.frames else {}
        return self.latents.observation(rows).values[_LATENTS][:, -self.observed :], seen

    def future(self, rows: Tensor) -> Tensor:
        """Latents of the frames ahead, ``(batch, frame, token, channel)``."""
        return self.latents.future(rows)[_LATENTS]
