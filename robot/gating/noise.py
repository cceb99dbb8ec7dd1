"""What is tried: the noise of the gate's decisions, known by name, so that rows, workers and order do not matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from flowrl.errors import ConfigError
from flowrl.shapes import seeded_generator

if TYPE_CHECKING:
    from torch import Tensor

    from robot.execution import EpisodeKey

__all__ = ["ExplorationNoise", "Hold", "check_hold"]

Hold = Literal["step", "chunk", "episode"]
"""How long one draw is kept: for a denoising step, an action chunk, or the whole episode."""

_STREAM = 11  # tells these draws from others with the same seed


def check_hold(hold: str) -> None:
    """Refuse what is no :data:`Hold`.

    Raises:
        ConfigError: If it is none.
    """
    if hold not in get_args(Hold):
        raise ConfigError(f"hold must be one of {', '.join(get_args(Hold))}, got {hold!r}")


@dataclass(frozen=True, kw_only=True)
class ExplorationNoise:
    """Standard normal noise of one update.

    Held noise explores in directions that last (gSDE, arXiv:2005.05719): an episode then tries one deviation instead of some hundred that
    cancel. Each decision is still scored by its own density.

    Attributes:
        seed: Of the run.
        update: Which update.
        steps: Denoising steps.
        columns: Multipliers of a step: one per latent, and one for the actions where they are gated.
        hold: How long a draw is kept.
        antithetic: Whether odd variations get the opposite of the even one before them.
        correlation: Between the columns of a draw, in [0, 1): near 1 latents are moved together. Each alone is standard normal.
    """

    seed: int
    update: int
    steps: int
    columns: int
    hold: Hold = "step"
    antithetic: bool = False
    correlation: float = 0.0

    def __call__(self, key: EpisodeKey) -> Tensor:
        """The noise of a chunk, ``(step, column)``.

        Args:
            key: Of the chunk; variations are told apart over all episodes of the update.
        """
        pair, odd = divmod(key.variation, 2) if self.antithetic else (key.variation, 0)
        chunk = -1 if self.hold == "episode" else key.chunk
        generator = seeded_generator(self.seed, _STREAM, self.update, pair, chunk)
        drawn = torch.randn((self.steps if self.hold == "step" else 1, self.columns + 1), generator=generator)
        own, common = drawn[:, :-1], drawn[:, -1:]
        noise = (1 - self.correlation) ** 0.5 * own + self.correlation**0.5 * common
        return (-noise if odd else noise).expand(self.steps, -1)
