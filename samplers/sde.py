"""Stochastic sampling over a whole path: Flow-GRPO and DanceGRPO."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from flowrl.shapes import seeded_generator
from samplers.chain import ChainSampler
from samplers.checks import check_stochastic, stochastic_steps

__all__ = ["SDESampler"]


@dataclass(frozen=True, kw_only=True)
class SDESampler(ChainSampler):
    """Stochastic steps along the path, all or a part of them trained.

    Flow-GRPO (arXiv:2505.05470): :class:`flowrl.flow.FlowSDE`, every member from noise of its own, all steps trained.
    DanceGRPO (arXiv:2505.07818): :class:`flowrl.flow.DanceSDE`, ``shared_noise=True``, ``exclude_last=True`` and
    ``train_fraction=0.6``: the last step goes to the predicted data without noise, and each update trains a random 60 %
    of the others.

    Attributes:
        sde_indices: Grid indices of the stochastic steps; None for all in which the dynamics inject noise (CPS injects none in the last).
        exclude_last: Whether the last step is noise-free although the dynamics would inject noise.
        train_fraction: Share of the stochastic steps, in (0, 1], that each update trains; rounded down, at least one.
        trained_indices: Grid indices of the steps that this update trains, drawn by :meth:`for_update`; None for the draw of
            update 0 and seed 0.

    Raises:
        ValueError: See :class:`samplers.base.GroupSampler`; also if indices repeat, lie outside the grid or are noise-free,
            or the fraction lies outside (0, 1].
    """

    sde_indices: tuple[int, ...] | None = None
    exclude_last: bool = False
    train_fraction: float = 1.0
    trained_indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction must lie in (0, 1], got {self.train_fraction}; 1 trains every stochastic step")
        stochastic = self.stochastic()
        check_stochastic(stochastic, self.dynamics, self.grid.times())
        if self.trained_indices is not None and not self.trained_indices:
            raise ValueError("trained_indices must name at least one step, got none; leave it out to draw them")
        if unknown := sorted(set(self.trained_indices or ()) - set(stochastic)):
            raise ValueError(f"trained_indices {unknown} are not stochastic; allowed: {stochastic}")

    def stochastic(self) -> tuple[int, ...]:
        """Grid indices of the stochastic steps, increasing."""
        indices = stochastic_steps(self.dynamics, self.grid.times()) if self.sde_indices is None else sorted(self.sde_indices)
        return tuple(index for index in indices if not (self.exclude_last and index == self.steps - 1))

    def trained(self) -> tuple[int, ...]:
        """Grid indices of the stochastic steps that are kept for training, increasing."""
        return self._draw(0, 0) if self.trained_indices is None else tuple(sorted(self.trained_indices))

    def for_update(self, update: int, seed: int) -> Self:
        """This sampler with the steps drawn that the update trains: the same for all prompts and on every process."""
        return replace(self, trained_indices=self._draw(update, seed))

    def _draw(self, update: int, seed: int) -> tuple[int, ...]:
        stochastic = self.stochastic()
        count = max(1, int(self.train_fraction * len(stochastic) + 1e-9))  # 0.6 · 15 is 9 although 0.6 is not a binary number
        order = torch.randperm(len(stochastic), generator=seeded_generator(seed, update)).tolist()
        return tuple(sorted(stochastic[place] for place in order[:count]))
