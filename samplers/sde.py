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
        train_fraction: Share of the stochastic steps that may be trained, in (0, 1], that each update trains; rounded down, at least one.
        train_last: Whether the last step may be trained if it is stochastic. Flow-GRPO's scripts draw it and do not train it
            (``timestep_fraction`` 0.99).
        trained_indices: Grid indices of the steps that this update trains, drawn by :meth:`for_update`; None for the draw of
            update 0 and seed 0.

    Raises:
        ValueError: See :class:`samplers.base.GroupSampler`; also if indices repeat, lie outside the grid or are noise-free,
            the fraction lies outside (0, 1], or no step is left to train.
    """

    sde_indices: tuple[int, ...] | None = None
    exclude_last: bool = False
    train_fraction: float = 1.0
    train_last: bool = True
    trained_indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction must lie in (0, 1], got {self.train_fraction}; 1 trains every stochastic step")
        stochastic = self.stochastic()
        check_stochastic(stochastic, self.dynamics, self.grid.times())
        if not self._trainable():
            raise ValueError("train_last=False leaves no step to train; name another in sde_indices")
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

    def _trainable(self) -> tuple[int, ...]:
        return tuple(index for index in self.stochastic() if self.train_last or index != self.steps - 1)

    def for_update(self, update: int, seed: int) -> Self:
        """This sampler with the steps drawn that the update trains: the same for all prompts and on every process."""
        return replace(self, trained_indices=self._draw(update, seed))

    def _draw(self, update: int, seed: int) -> tuple[int, ...]:
        trainable = self._trainable()
        count = max(1, int(self.train_fraction * len(trainable) + 1e-9))  # 0.6 · 15 is 9 although 0.6 is not a binary number
        order = torch.randperm(len(trainable), generator=seeded_generator(seed, update)).tolist()
        return tuple(sorted(trainable[place] for place in order[:count]))
