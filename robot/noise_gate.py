"""NoiseGate (arXiv:2605.07794): a light network that decides, at every denoising step, how far each predicted latent is denoised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import nn

from robot.gating.decision import Decision
from robot.gating.gate import Gate, GateSettings
from robot.gating.network import GateNetwork
from robot.learning.blocks import require_positive

if TYPE_CHECKING:
    from robot.gating.record import GateRecord, View
    from robot.world_action import WorldActionModel

__all__ = ["ConstantGate", "ConstantGateConfig", "NoiseGate", "NoiseGateConfig"]

_Config = TypeVar("_Config", bound=GateSettings)


@dataclass(frozen=True, kw_only=True)
class NoiseGateConfig(GateSettings):
    """A gate that looks at the latents.

    Attributes:
        width: Of a frame's features, even and a multiple of ``heads`` and of 4.
        layers: Of attention over frames.
        heads: Of the attention.

    Raises:
        ValueError: If a size is out of range.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "width", "layers", "heads")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be a multiple of heads and of 4, got width={self.width} and heads={self.heads}")

    def build(self, frames: int, tokens: int, channels: int) -> NoiseGate:
        """See :class:`robot.gating.GateConfig`."""
        return NoiseGate(frames, tokens, channels, config=self)


@dataclass(frozen=True, kw_only=True)
class ConstantGateConfig(GateSettings):
    """A gate that does not look: one mean and one spread per latent."""

    def build(self, frames: int, tokens: int = 1, channels: int = 1) -> ConstantGate:
        """See :class:`robot.gating.GateConfig`; of the sizes only ``frames`` matters."""
        del tokens, channels
        return ConstantGate(frames, config=self)


class NoiseGate(Gate):
    """The gate of the paper. Fresh, it is exactly the shared schedule: its last layer is zero, so every multiplier is 1.

    Attributes:
        network: See :class:`robot.gating.network.GateNetwork`.
    """

    def __init__(self, frames: int, tokens: int, channels: int, *, config: NoiseGateConfig | None = None, **settings: Any) -> None:
        """Fresh weights from torch's global generator.

        Args:
            frames: Predicted latents.
            tokens: Of a latent.
            channels: Numbers of a token.
            config: What it is told; or
            settings: the fields of :class:`NoiseGateConfig`, such as ``steps=5``.

        Raises:
            ValueError: If both are given, or a size is out of range.
        """
        config = _one_of(NoiseGateConfig, config, settings)
        super().__init__(config, frames)
        if min(tokens, channels) < 1:
            raise ValueError(f"a latent needs at least one token and one channel, got tokens={tokens} and channels={channels}")
        self.tokens, self.channels = tokens, channels
        self.network = GateNetwork(
            frames, tokens, channels, columns=self.columns, width=config.width, layers=config.layers, heads=config.heads
        )

    @classmethod
    def for_model(cls, model: WorldActionModel, **settings: Any) -> Self:
        """A fresh gate for a model, on its device, with as many steps as its present schedule where ``steps`` is not given.

        Args:
            model: Whose latents it will see.
            settings: Fields of :class:`NoiseGateConfig`.
        """
        layout = model.layout
        return cls(layout.frames, layout.tokens, layout.channels, **({"steps": model.schedule.steps} | settings)).to(model.device)

    @property
    def bias(self) -> nn.Parameter:
        """Of the last layer."""
        return self.network.last.bias

    def decide(self, view: View) -> Decision:
        """See :meth:`robot.gating.Gate.decide`.

        Raises:
            ValueError: If the latents are of other sizes than the gate was built for.
        """
        wanted = (self.frames, self.tokens, self.channels)
        if tuple(view.latents.shape[1:]) != wanted:
            raise ValueError(f"this gate reads latents (batch, {', '.join(map(str, wanted))}), got {tuple(view.latents.shape)}")
        return Decision(self.network(view), self.spread)


class ConstantGate(Gate):
    """One mean and one spread per latent, whatever the state.

    With exploration noise that is kept for an episode and drawn in antithetic pairs, its policy gradient is an evolution strategy.

    Attributes:
        mean: Of ``u``, ``(column,)``.
    """

    looks = False

    def __init__(self, frames: int, *, config: ConstantGateConfig | None = None, **settings: Any) -> None:
        """Start at the shared schedule.

        Args:
            frames: Predicted latents.
            config: What it is told; or
            settings: the fields of :class:`ConstantGateConfig`.

        Raises:
            ValueError: If both are given, or a number is out of range.
        """
        super().__init__(_one_of(ConstantGateConfig, config, settings), frames)
        self.mean = nn.Parameter(torch.zeros(self.columns))

    @property
    def bias(self) -> nn.Parameter:
        """The means."""
        return self.mean

    def decide(self, view: View) -> Decision:
        """See :meth:`robot.gating.Gate.decide`."""
        return Decision(self.mean.expand(len(view.times), -1), self.spread)

    def decisions(self, record: GateRecord) -> Decision:
        """See :meth:`robot.gating.Gate.decisions`; there is nothing to look at."""
        return Decision(self.mean.expand_as(record.decisions), self.spread)


def _one_of(kind: type[_Config], config: _Config | None, settings: dict[str, Any]) -> _Config:
    if config is not None and settings:
        raise ValueError(f"give a config or settings of their own, not both; got {config} and {sorted(settings)}")
    return kind(**settings) if config is None else config
