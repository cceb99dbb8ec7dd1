"""Which weight to take from measured success: the best one with a rule for ties, and the best of a smooth curve."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from robot.search.simplex import Weights, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["best_candidate", "smooth_best"]

_TIE = 1e-9
_ALL_QUADRATIC = 3  # points that fix a parabola
_HALF = 0.5  # added to successes and failures, so that 0 % and 100 % have a logit


def best_candidate(candidates: Sequence[Weights], rates: Sequence[float]) -> int:
    """The index of the highest rate; of a tied plateau, the one closest to the plateau's centroid.

    Where two are equally close, the one nearer to equal weights is taken, and then the first: on an even plateau the rule does not
    favour the member that happens to be named first.

    Args:
        candidates: Weights on the simplex.
        rates: Success rate of each.

    Raises:
        ValueError: If there is no candidate, or the two differ in length.
    """
    if not candidates or len(candidates) != len(rates):
        raise ValueError(f"one rate per candidate is needed, got {len(rates)} rates for {len(candidates)} candidates")
    highest = max(rates)
    tied = [index for index, rate in enumerate(rates) if rate > highest - _TIE]
    centroid = [sum(candidates[index][member] for index in tied) / len(tied) for member in range(len(candidates[0]))]
    middle = uniform(len(centroid))
    return min(tied, key=lambda index: (_distance(candidates[index], centroid), _distance(candidates[index], middle), index))


def smooth_best(first_weights: Sequence[float], successes: Sequence[int], trials: Sequence[int]) -> float | None:
    """The maximum over [0, 1] of a parabola fitted to the logit of success, for two members.

    Weighted least squares on empirical logits ``log((k + ½)/(n − k + ½))`` with their inverse variances: neighbouring weights vouch
    for each other, so one lucky candidate does not decide. Where the true curve is no parabola, the maximum is shifted.

    Args:
        first_weights: The first member's weight of each candidate, in [0, 1].
        successes: Of each candidate.
        trials: Of each candidate; those with none are left out.

    Returns:
        The first member's weight; None if fewer than three candidates were tried.
    """
    measured = [(w, k, n) for w, k, n in zip(first_weights, successes, trials, strict=True) if n]
    if len(measured) < _ALL_QUADRATIC:
        return None
    w, k, n = (np.asarray(column, dtype=float) for column in zip(*measured, strict=True))
    logit = np.log((k + _HALF) / (n - k + _HALF))
    precision = np.sqrt(1 / (1 / (k + _HALF) + 1 / (n - k + _HALF)))
    constant, slope, curvature = np.linalg.lstsq(np.stack([w**0, w, w**2], 1) * precision[:, None], logit * precision, rcond=None)[0]
    places = [0.0, 1.0]
    if curvature < 0 and 0 < (peak := -slope / (2 * curvature)) < 1:
        places.append(float(peak))
    return max(places, key=lambda place: constant + slope * place + curvature * place**2)


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Euclidean, rounded: equal distances must compare equal."""
    return round(math.dist(a, b), 9)
