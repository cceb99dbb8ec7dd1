"""Candidate weights: the lattice on the simplex, its corners and its centre."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import TypeAlias

__all__ = ["Weights", "corner", "corners", "lattice", "uniform", "weight_label"]

Weights: TypeAlias = tuple[float, ...]
"""One weight per member, each in [0, 1], together 1."""

_ROUNDING = 1e-9
_DIGITS = 12


def lattice(members: int, step: float = 0.1) -> list[Weights]:
    """Every way to share 1 among the members in whole steps; ``C(1/step + members − 1, members − 1)`` points.

    Args:
        members: At least 2.
        step: Distance of neighbouring points, in (0, 1]; must divide 1.

    Returns:
        Ordered by the first weight, then the second, ...: for two members ``(0, 1), (0.1, 0.9), ..., (1, 0)``.

    Raises:
        ValueError: If there are fewer than two members, or the step does not divide 1.
    """
    if members < 2:  # noqa: PLR2004
        raise ValueError(f"a search needs two members or more, got {members}; a policy alone has weight 1")
    parts = round(1 / step) if 0 < step <= 1 else 0
    if not parts or abs(parts * step - 1) > _ROUNDING:
        raise ValueError(f"the step of a weight lattice must divide 1, got {step}; take 0.5, 0.25, 0.2, 0.1, 0.05 or 0.01")
    points = []
    for bars in combinations(range(parts + members - 1), members - 1):  # stars and bars
        edges = (-1, *bars, parts + members - 1)
        points.append(tuple(round((after - before - 1) / parts, _DIGITS) for before, after in pairwise(edges)))
    return points


def corner(members: int, index: int) -> Weights:
    """All weight on one member."""
    return tuple(float(index == member) for member in range(members))


def corners(members: int) -> list[Weights]:
    """Each member alone, in order."""
    return [corner(members, index) for index in range(members)]


def uniform(members: int) -> Weights:
    """The same weight for all."""
    return (1 / members,) * members


def weight_label(weights: Weights) -> str:
    """Weights as a name: ``(0.3, 0.7)`` is ``0.3, 0.7``."""
    return ", ".join(f"{weight:.4g}" for weight in weights)
