"""The noise-free steps after the last stochastic one, which serve the reward alone."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from samplers.solvers import Memory

if TYPE_CHECKING:
    from torch import Tensor

    from samplers.evaluation import Evaluator
    from samplers.solvers import Solver

__all__ = ["follow_tail"]


def follow_tail(evaluate: Evaluator, x: Tensor, times: Tensor, prompts: Tensor, solver: Solver) -> Tensor:
    """Take rows that share their times from the first of these to the last.

    Where the field has a tail of its own, it gets at most ``max_batch`` rows and sees those through to the end before the next ones
    begin: what it remembers belongs to these rows.

    Args:
        evaluate: The policy.
        x: ``(row, *state)`` at ``times[0]``.
        times: Falling, ``(step + 1,)``.
        prompts: ``(row,)`` integer, each row's row of the condition.
        solver: Starts afresh.

    Returns:
        ``(row, *state)`` at ``times[-1]``.
    """
    if not evaluate.has_tail or len(times) == 1:
        return _follow(evaluate, x, times, prompts, solver)
    size, finished = evaluate.max_batch or len(x), torch.empty_like(x)
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        with evaluate.tail() as own:
            finished[rows] = _follow(own, x[rows], times, prompts[rows], solver)
    return finished


def _follow(evaluate: Evaluator, x: Tensor, times: Tensor, prompts: Tensor, solver: Solver) -> Tensor:
    memory = Memory()
    for before, after in pairwise(times):
        t, s = before.expand(len(x)), after.expand(len(x))
        x, memory = solver.step(evaluate(x, t, prompts), x, t, s, memory, evaluate.at(prompts))
    return x
