"""A world-action model in closed form, of whose predicted latents only one says what the actions will be.

The data have two modes, ``m = ±1``, equally likely. All numbers of the *telling* latent and of the actions are ``N(m, std²)``, those of the
other latents ``N(0, 1)``, all independent given ``m``. With a time per row, ``x_t | m`` is Gaussian, so with ``v = (1 − t)²·std² + t²``

``E[m | x_t] = tanh(Σ (1 − t)·x_t / v)``, the sum over the telling latent and the actions,

and the velocity is that of a Gaussian with this mean (:class:`flowrl.testing.GaussianField` is affine in it). On a coarse grid the actions
of the shared schedule often end between the modes; the further ahead the telling latent is denoised, the more often they end in one. The
other latents' times change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from flowrl.testing import GaussianField
from robot.envs.line import LINE_ACTION
from robot.learning.encoders import SensorStats
from robot.normalise import NormStats
from robot.world.latents import StateFrames
from robot.world.layout import Layout
from robot.world_action import WorldActionModel
from samplers import PerTokenSchedule

if TYPE_CHECKING:
    from flowrl.shapes import Time
    from robot.world.network import JointTransformer

__all__ = ["TOY_ACTION", "TOY_SENSOR", "TwoModes", "TwoModesNetwork", "distance_to_modes"]

TOY_ACTION = LINE_ACTION
TOY_SENSOR = "place"


@dataclass(frozen=True, kw_only=True)
class TwoModes:
    """The closed form as a policy source; :class:`robot.gating.toy_task.TwoModesTask` is what it can do.

    Attributes:
        frames: Predicted latents.
        telling: Index of the one that shares the actions' mode.
        tokens: Of a latent.
        channels: Numbers of a token.
        std: Of the telling latent and the actions around the mode, > 0.
        steps: Denoising steps of the shared schedule that it comes with.

    Raises:
        ValueError: If a number is out of range.
    """

    frames: int = 3
    telling: int = 1
    tokens: int = 1
    channels: int = 1
    std: float = 0.1
    steps: int = 3

    def __post_init__(self) -> None:
        if not (0 <= self.telling < self.frames and self.std > 0):
            raise ValueError(f"need 0 <= telling < frames and std > 0, got telling={self.telling}, frames={self.frames}, std={self.std}")

    @property
    def layout(self) -> Layout:
        """Of its states; a chunk is one action of one number."""
        return Layout(frames=self.frames, tokens=self.tokens, channels=self.channels, horizon=1, dof=1)

    def network(self) -> TwoModesNetwork:
        """The exact velocity."""
        return TwoModesNetwork(self.layout, telling=self.telling, std=self.std)

    def load(self, device: str = "cpu") -> WorldActionModel:
        """The model, ready to act."""
        size = self.tokens * self.channels
        codec = StateFrames(vectors=(TOY_SENSOR,), tokens=self.tokens).build({TOY_SENSOR: SensorStats(shape=(size,))})
        return WorldActionModel(
            codec=codec.to(device),
            network=cast("JointTransformer", self.network().to(device)),
            stats=NormStats(torch.zeros(()), torch.ones(())),
            action=TOY_ACTION,
            stride=1,
            execute=1,
            schedule=PerTokenSchedule.shared(self.steps, self.frames),
            clip=None,
            name="two modes",
        )


class TwoModesNetwork(nn.Module):
    """``E[noise − data | x_t]`` on packed states; a :class:`flowrl.flow.VelocityField`, and a network for a world-action model.

    Attributes:
        layout: Of its states.
        std: Of the data given the mode, of every row ``(frame + 1,)``; frozen.
        observed: Clean frames that it is shown, and ignores.
    """

    observed = 1
    video_sees_action = True

    def __init__(self, layout: Layout, *, telling: int, std: float) -> None:
        super().__init__()
        self.layout = layout
        tells = torch.zeros(layout.frames + 1, 1)
        tells[[telling, -1]] = 1
        self.std = nn.Parameter(torch.where(tells > 0, std, torch.ones(())), requires_grad=False)
        filled = layout.pack(torch.ones(1, layout.frames, layout.tokens, layout.channels), torch.ones(1, layout.horizon, layout.dof))
        self.register_buffer("tells", tells)
        self.register_buffer("filled", filled[0])
        self.tells: Tensor
        self.filled: Tensor

    def forward(self, x: Tensor, t: Time, observed: object = None, features: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """The velocity, packed like ``x``.

        Args:
            x: Packed state ``(batch, frame + 1, width)``.
            t: Noise level, ``()``, ``(batch,)`` or ``(batch, frame + 1)``.
            observed: Or a condition; not used.
            features: Not used.
            hidden: ``(batch, frame)`` bool, latents from which the actions must not learn their mode.
        """
        del observed, features
        times = self.layout.row_times(t, x)
        clear = (1 - times)[..., None]
        evidence = (self.tells * self.filled * clear * x / (clear**2 * self.std**2 + times[..., None] ** 2)).sum(-1)
        total = evidence.sum(1, keepdim=True).expand_as(evidence)
        if hidden is not None:
            open_to_actions = evidence[:, :-1].masked_fill(hidden, 0).sum(1, keepdim=True) + evidence[:, -1:]
            total = torch.cat([total[:, :-1], open_to_actions], dim=1)
        mode = total.tanh()[..., None] * self.tells
        return GaussianField(mean=mode, std=self.std)(x, times) * self.filled


def distance_to_modes(actions: Tensor) -> Tensor:
    """Mean squared distance of a chunk to the nearer of its two modes, ``(batch,)``.

    Args:
        actions: ``(batch, horizon, dof)``.
    """
    each = torch.stack([(actions - mode).square().flatten(1).mean(1) for mode in (-1, 1)])
    return each.amin(0)
