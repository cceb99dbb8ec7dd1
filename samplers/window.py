"""Stochastic sampling in a window of steps: MixGRPO and Flow-GRPO-Fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from flowrl.shapes import seeded_generator
from samplers.chain import ChainSampler
from samplers.checks import check_at_least, check_name, check_stochastic, stochastic_steps

__all__ = ["WindowSampler"]


@dataclass(frozen=True, kw_only=True)
class WindowSampler(ChainSampler):
    """Noise-free before and after a window of stochastic steps, all trained; the window moves from update to update.

    MixGRPO (arXiv:2507.21802): ``size=4, stride=1, shift_every=25``, progressive; its Flash variant has
    ``tail_solver=DPMSolverPP2M()`` and ``tail_stride=2`` after it. Flow-GRPO-Fast: ``size`` 1 or 2, ``order="random"``, ``shift_every=1``
    and ``last_index`` in the first half. The steps before the window are taken once per group if its members share their
    initial noise.

    Attributes:
        size: Steps of the window, at least 1.
        stride: By how many steps it moves, at least 1.
        shift_every: After how many updates it moves, at least 1.
        order: ``"progressive"``: from noise to data, then from the start again; ``"random"``: to any of the same positions.
        first_index: First step that the window may cover.
        last_index: Last step that it may cover; None for the last in which the dynamics inject noise.
        start: First step of the window in this update, set by :meth:`for_update`; None for ``first_index``.

    Raises:
        ValueError: See :class:`samplers.base.GroupSampler`; also if a count is < 1, the order unknown, or the window fits nowhere.
    """

    shared_noise: bool = True
    size: int = 4
    stride: int = 1
    shift_every: int = 25
    order: str = "progressive"
    first_index: int = 0
    last_index: int | None = None
    start: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("size", self.size, 1, "it is the number of stochastic steps; for none use samplers.ODESampler")
        check_at_least("stride", self.stride, 1, "the window moves from noise to data")
        check_at_least("shift_every", self.shift_every, 1, "1 moves the window at every update")
        check_name("order", self.order, ("progressive", "random"))
        allowed = tuple(range(self.first_index, self._last() + 1))
        check_stochastic(allowed, self.dynamics, self.grid.times())
        if not self.positions():
            raise ValueError(f"a window of {self.size} steps does not fit steps {self.first_index} … {self._last()}; make it smaller")
        if self.start is not None and not {*range(self.start, self.start + self.size)} <= {*allowed}:
            raise ValueError(f"a window of {self.size} steps from start = {self.start} leaves steps {self.first_index} … {self._last()}")

    def positions(self) -> tuple[int, ...]:
        """Where the window may start, in order."""
        return tuple(range(self.first_index, self._last() - self.size + 2, self.stride))

    def stochastic(self) -> tuple[int, ...]:
        """Grid indices of the steps in the window."""
        start = self.first_index if self.start is None else self.start
        return tuple(range(start, start + self.size))

    def trained(self) -> tuple[int, ...]:
        """All steps in the window."""
        return self.stochastic()

    def for_update(self, update: int, seed: int) -> Self:
        """This sampler with its window moved: the same on every process."""
        positions, moves = self.positions(), update // self.shift_every
        if self.order == "random":
            choice = torch.randint(len(positions), (), generator=seeded_generator(seed, moves))
            return replace(self, start=positions[int(choice)])
        return replace(self, start=positions[moves % len(positions)])

    def _last(self) -> int:
        if self.last_index is not None:
            return self.last_index
        return max(stochastic_steps(self.dynamics, self.grid.times()), default=-1)
