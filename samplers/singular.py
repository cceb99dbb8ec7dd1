"""Singular stochastic sampling with granular tails: G²RPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from flowrl.shapes import float_dtype
from samplers.base import GroupSampler
from samplers.checks import check_inputs, check_stochastic
from samplers.evaluation import Evaluator
from samplers.granular import TailLevel, singular_evaluations, tail_levels, tail_lists
from samplers.solvers import Memory, select_rows
from samplers.tails import follow_tail

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.flow import Condition, Trajectory, VelocityField
    from flowrl.shapes import RandomSource
    from samplers.recorder import Recorder

__all__ = ["SingularStochasticSampler"]


@dataclass(frozen=True, kw_only=True)
class SingularStochasticSampler(GroupSampler):
    """One stochastic step per branch, so that what its reward differs by is due to that step (G²RPO, arXiv:2510.01982).

    From one initial noise per prompt a noise-free anchor runs as far as the last of the stochastic steps. At each of
    them ``group_size`` branches leave it by noise of their own, and each branch is taken to the data without noise, once
    per stride. What the mathematics shares is computed once: one velocity of the anchor serves its own step and all
    branches there, and strides share the states on which their tails agree. All tails of all prompts advance together,
    each at its own time; those that are done drop out.

    Memory holds the anchor, the children, the finished samples and the states under way, whatever the number of steps.

    The trajectory has one parent per (stochastic step, prompt), one view per stochastic step and one granularity per stride.

    Attributes:
        sde_indices: Grid indices k of the stochastic steps, one column each.
        strides: Granularities of the tails; 1 is the fine grid.
        anchoring: Where the strides count from, ``"official"`` or ``"paper"``, see :func:`samplers.granular_indices`.

    Raises:
        ValueError: See :class:`samplers.base.GroupSampler`; also if indices or strides repeat or are out of range, a step
            is noise-free or the anchoring is unknown.
    """

    sde_indices: tuple[int, ...]
    strides: tuple[int, ...] = (1, 2)
    anchoring: str = "official"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sde_indices", tuple(self.sde_indices))
        object.__setattr__(self, "strides", tuple(self.strides))
        check_stochastic(self.sde_indices, self.dynamics, self.grid.times())
        self.evaluations()  # refuses strides and anchorings that do not exist

    def noise_rows(self) -> int:
        """1: the members of a group share their anchor."""
        return 1

    def for_update(self, update: int, seed: int) -> Self:
        """Itself: every update takes all stochastic steps."""
        del update, seed
        return self

    def evaluations(self) -> int:
        """Network evaluations per prompt with solvers that take one a step, such as Euler; see :func:`samplers.singular_evaluations`."""
        return singular_evaluations(self.steps, self.sde_indices, self.group_size, self.strides, self.anchoring)

    @torch.no_grad()
    def sample(self, field: VelocityField, noise: Tensor, condition: Condition, generator: RandomSource = None) -> Trajectory:
        """Draw; see :class:`flowrl.flow.Sampler`.

        Raises:
            ValueError: If the rows of ``noise`` do not fit the prompts.
        """
        check_inputs(noise, condition, self.noise_rows())
        x = noise.to(float_dtype(noise))
        evaluate = Evaluator(field, condition, self.max_batch)
        recorder = self._recorder(self.sde_indices, x, len(condition))
        self._branch(x, evaluate, recorder, generator)
        tails = self._separate_tails if evaluate.has_tail else self._tails
        return recorder.trajectory(tails(x, evaluate, recorder), evaluate.network_evaluations)

    def _branch(self, x: Tensor, evaluate: Evaluator, recorder: Recorder, generator: RandomSource) -> None:
        """Run the anchors and draw all children from them."""
        times, memory = self._times(x)[:, None].expand(-1, len(x)), Memory()
        prompts = torch.arange(len(x), device=x.device)
        for index in range(max(self.sde_indices) + 1):
            x = recorder.rounded(x) if index in self.sde_indices else x
            velocity = evaluate(x, times[index], prompts)
            if index in self.sde_indices:
                recorder.draw(index, x, velocity, generator)
            if index < max(self.sde_indices):
                x, memory = self.solver.step(velocity, x, times[index], times[index + 1], memory, evaluate.at(prompts))

    def _separate_tails(self, like: Tensor, evaluate: Evaluator, recorder: Recorder) -> Tensor:
        """As :meth:`_tails`, each tail by itself, for a field that remembers something of the rows that it sees."""
        times, solver = self._times(like), self.tail_solver or self.solver
        samples = like.new_empty(len(recorder.group), len(self.sde_indices), len(self.strides), *like.shape[1:])
        for (column, granularity), indices in tail_lists(self.steps, self.sde_indices, self.strides, self.anchoring).items():
            children = recorder.children[:, column].to(like.dtype)
            own = times[[*indices, self.steps]] if indices else times[-1:]
            samples[:, column, granularity] = follow_tail(evaluate, children, own, recorder.group, solver)
        return samples

    def _tails(self, like: Tensor, evaluate: Evaluator, recorder: Recorder) -> Tensor:
        """Take all children to the data, ``(row, step, granularity, *state)``."""
        children, rows = recorder.children, len(recorder.group)
        lists = tail_lists(self.steps, self.sde_indices, self.strides, self.anchoring)
        samples = like.new_empty(rows, len(self.sde_indices), len(self.strides), *like.shape[1:])
        for (column, granularity), indices in lists.items():
            if not indices:
                samples[:, column, granularity] = children[:, column]
        levels = tail_levels(lists, self.steps)
        starts = list(levels[0].columns) if levels else []
        x, memory = children[:, starts].transpose(0, 1).flatten(0, 1).to(like.dtype), Memory()
        for level in levels:
            x, memory = self._advance(level, x, memory, evaluate, recorder.group)
            for place, edge in enumerate(level.edges):
                for column, granularity in edge.finishes:
                    samples[:, column, granularity] = x[place * rows : (place + 1) * rows]
            unfinished = slice(rows * sum(not edge.finishes for edge in level.edges))
            x, memory = x[unfinished], select_rows(memory, unfinished)
        return samples

    def _advance(self, level: TailLevel, x: Tensor, memory: Memory, evaluate: Evaluator, group: Tensor) -> tuple[Tensor, Memory]:
        """Evaluate all states of a level, ``(level state·row, *state)``, and take each along its edges: ``(edge·row, *state)``."""
        times, rows = self._times(x), len(group)
        t, prompts = times[list(level.indices)].repeat_interleave(rows), group.repeat(len(level.indices))
        velocity = evaluate(x, t, prompts)
        sources = torch.tensor([edge.source for edge in level.edges], device=x.device)
        s = times[[edge.target for edge in level.edges]].repeat_interleave(rows)
        if sources.tolist() != list(range(len(level.indices))):  # some states branch
            fork = (sources[:, None] * rows + torch.arange(rows, device=x.device)).flatten()
            velocity, x, t, prompts, memory = velocity[fork], x[fork], t[fork], prompts[fork], select_rows(memory, fork)
        solver = self.tail_solver or self.solver
        return solver.step(velocity, x, t, s, memory, evaluate.at(prompts))
