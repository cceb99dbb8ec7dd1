"""Granular tails: which states a tail of each stride evaluates, and which of them several strides share.

Grid indices count from the noise end: ``times[0]`` is noise, ``times[steps]`` is data. The stochastic step at ``sde_index = k``
goes from ``times[k]`` to ``times[k + 1]``; its tail starts by evaluating the state at ``k + 1``, and from the last state that it
evaluates it steps to ``times[steps]`` at once. Where that is 0, the Euler step there is the predicted data itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowrl.errors import close_match

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

__all__ = ["ANCHORINGS", "TailEdge", "TailLevel", "granular_indices", "singular_evaluations", "tail_levels", "tail_lists"]


def _official(steps: int, sde_index: int, stride: int) -> list[int]:
    """Anchored at the noisy end, as the official G²RPO code: one fine step, then ``times[k + 2::stride]``, the last not evaluated."""
    listed = [sde_index + 1, *range(sde_index + 2, steps + 1, stride)]
    return listed[:-1]


def _paper(steps: int, sde_index: int, stride: int) -> list[int]:
    """Anchored at the clean end (arXiv:2510.01982): ``S = {1, 1 + stride, 1 + 2·stride, …}`` counted from the clean end.

    The paper's index ``i`` is ours ``steps − i``, so ``S`` holds ``steps − 1``, ``steps − 1 − stride``, … as far as the
    state that the stochastic step reached. That state, ours ``k + 1``, is where the tail starts, so it is evaluated whether
    or not ``S`` hits it; from ``steps − 1`` the tail ends with a fine step. (The paper prints the last element of ``S`` as
    ``floor((k − 1)/stride)·stride``, which is of the form ``1 + m·stride`` only for stride 1.)
    """
    coarse = range(steps - 1, sde_index + 1, -stride)
    return [sde_index + 1, *reversed(coarse)] if sde_index + 1 < steps else []


ANCHORINGS: Mapping[str, Callable[[int, int, int], list[int]]] = {"official": _official, "paper": _paper}
"""Ways to place a coarse tail on the fine grid."""


def granular_indices(steps: int, sde_index: int, stride: int, anchoring: str = "official") -> list[int]:
    """The grid indices that one tail evaluates (G²RPO, arXiv:2510.01982).

    Args:
        steps: Steps of the fine grid.
        sde_index: Index k of the stochastic step, 0 … steps − 1; the tail starts at k + 1.
        stride: Granularity, at least 1; 1 is the fine grid.
        anchoring: ``"official"``: one fine step, then the stride from there, as the released code;
            ``"paper"``: the stride counted from the clean end.

    Returns:
        Increasing indices; empty if the stochastic step is the last one. From the last of them the tail steps to the end of the grid.

    Raises:
        ValueError: If an argument is out of range or the anchoring unknown.

    >>> granular_indices(steps=16, sde_index=1, stride=2)
    [2, 3, 5, 7, 9, 11, 13]
    >>> granular_indices(steps=16, sde_index=1, stride=2, anchoring="paper")
    [2, 3, 5, 7, 9, 11, 13, 15]
    """
    if not 0 <= sde_index < steps:
        raise ValueError(f"sde_index must lie in 0 … {steps - 1} (steps = {steps}), got {sde_index}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}; 1 is the fine grid")
    if anchoring not in ANCHORINGS:
        raise ValueError(f"unknown anchoring {anchoring!r}{close_match(anchoring, ANCHORINGS)}")
    return ANCHORINGS[anchoring](steps, sde_index, stride)


TailKey = tuple[int, int]
"""(column of the stochastic step, column of the granularity)."""


@dataclass(frozen=True)
class TailEdge:
    """A deterministic step of one or more tails.

    Attributes:
        source: Position of the state among those of its level.
        target: Grid index that it steps to.
        finishes: Tails that end there; none if the step leads to a state of the next level.
    """

    source: int
    target: int
    finishes: tuple[TailKey, ...]


@dataclass(frozen=True)
class TailLevel:
    """All states, of all stochastic steps, that are so many evaluations away from their stochastic step.

    Attributes:
        columns: Column of the stochastic step of each state.
        indices: Grid index of each state.
        edges: Steps out of them: first those to the states of the next level, in its order, then those that finish.
    """

    columns: tuple[int, ...]
    indices: tuple[int, ...]
    edges: tuple[TailEdge, ...]


def tail_levels(lists: Mapping[TailKey, Sequence[int]], final: int) -> list[TailLevel]:
    """Merge tails into a trie: two tails share a state exactly if they come from the same step and agree up to it.

    Args:
        lists: Evaluated indices of each tail; empty lists take no part.
        final: Grid index at which all tails end.

    Returns:
        The trie by depth. Its states, summed over levels, are the evaluations of one branch.
    """
    depth = max(map(len, lists.values()), default=0)
    return [_level(lists, at, final) for at in range(depth)]


def _level(lists: Mapping[TailKey, Sequence[int]], depth: int, final: int) -> TailLevel:
    states = _merged(lists, depth + 1)
    position = {path: place for place, path in enumerate(states)}
    onward = [TailEdge(position[path[:-1]], path[-1], ()) for path in _merged(lists, depth + 2)]
    last = [
        TailEdge(place, final, ends)
        for path, place in position.items()
        if (ends := tuple(key for key, indices in lists.items() if (key[0], *indices) == path))
    ]
    return TailLevel(tuple(path[0] for path in states), tuple(path[-1] for path in states), (*onward, *last))


def _merged(lists: Mapping[TailKey, Sequence[int]], length: int) -> list[tuple[int, ...]]:
    """The distinct beginnings of that length, each as (column, *indices)."""
    return list(dict.fromkeys((key[0], *indices[:length]) for key, indices in lists.items() if len(indices) >= length))


def tail_lists(steps: int, sde_indices: Sequence[int], strides: Sequence[int], anchoring: str) -> dict[TailKey, list[int]]:
    """The evaluated indices of every tail, by (step column, granularity column).

    Raises:
        ValueError: See :func:`granular_indices`.
    """
    return {
        (column, granularity): granular_indices(steps, sde_index, stride, anchoring)
        for column, sde_index in enumerate(sde_indices)
        for granularity, stride in enumerate(strides)
    }


def singular_evaluations(
    steps: int, sde_indices: Collection[int], group_size: int, strides: Collection[int], anchoring: str = "official"
) -> int:
    """Network evaluations per prompt of :class:`samplers.SingularStochasticSampler` with Euler steps.

    The anchor takes ``max k + 1``, each of its velocities serving all branches, and each branch takes every state of its
    tails once. With the official anchoring and at least two evaluations in every tail that is
    ``(max k + 1) + G·Σ_k[Σ_λ n(k, λ) − 2(|Λ| − 1)]``, where ``n(k, λ) = ceil((steps − 1 − k)/λ)``.

    Args:
        steps: Steps of the fine grid.
        sde_indices: Stochastic steps k.
        group_size: Branches G per stochastic step.
        strides: Granularities Λ.
        anchoring: See :func:`granular_indices`.

    Raises:
        ValueError: If an argument is out of range, or stochastic steps repeat or are missing.

    >>> singular_evaluations(steps=16, sde_indices=range(8), group_size=12, strides=(1, 2))
    1496
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    if not sde_indices or len(set(sde_indices)) < len(sde_indices):
        raise ValueError(f"sde_indices must be one or more different steps, got {tuple(sde_indices)}")
    if not strides or len(set(strides)) < len(strides):
        raise ValueError(f"strides must be one or more different numbers, got {tuple(strides)}; (1,) is the fine grid alone")
    levels = tail_levels(tail_lists(steps, tuple(sde_indices), tuple(strides), anchoring), steps)
    return max(sde_indices) + 1 + group_size * sum(len(level.indices) for level in levels)
