"""The weights with the least expected error, from how the members' errors go together.

With errors ``e_i`` and weights on the simplex, ``E‖Σ w_i e_i‖² = wᵀ G w`` with the Gram matrix ``G_ij = E⟨e_i, e_j⟩`` (GPC,
arXiv:2510.01068, Prop. 4.1, for any number of members).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_pair_weight", "error_gram", "kkt_violation", "least_error_weights", "strictly_gains"]

Matrix = NDArray[np.float64]

_FEASIBLE = 1e-12
_TIE = 1e-10
_TINY = 1e-300
MOST_MEMBERS = 12  # every support is solved for: 4095 small systems


def error_gram(biases: Matrix, covariance: Matrix) -> Matrix:
    """``G = b bᵀ + C`` for errors ``b_i + η_i`` with zero-mean ``η``.

    Args:
        biases: ``(member, dimension)``.
        covariance: ``E⟨η_i, η_j⟩``, ``(member, member)``.
    """
    return np.asarray(biases) @ np.asarray(biases).T + np.asarray(covariance)


def best_pair_weight(gram: Matrix) -> float:
    """The first of two members' weight without the bounds 0 and 1: ``(G_22 − G_12)/(G_11 + G_22 − 2 G_12)``.

    Outside [0, 1] composing gains nothing, and the better member alone is best.

    Raises:
        ValueError: If there are not two members, or their errors are the same, so that every weight is as good.
    """
    gram = _checked(gram)
    curvature = gram[0, 0] + gram[-1, -1] - 2 * gram[0, -1]
    if len(gram) != 2 or not curvature > 0:  # noqa: PLR2004
        raise ValueError(f"a pair with different errors is needed, got the Gram matrix {gram.tolist()}")
    return float((gram[1, 1] - gram[0, 1]) / curvature)


def strictly_gains(gram: Matrix) -> bool:
    """Whether some weight of a pair has less error than either member: ``G_12 < min(G_11, G_22)``.

    Without bias that is a correlation below ``min(σ1/σ2, σ2/σ1)``: not just one below 1, as the paper's Prop. 4.1 says.
    """
    gram = _checked(gram)
    return bool(gram[0, 1] < min(gram[0, 0], gram[1, 1]))


def least_error_weights(gram: Matrix) -> NDArray[np.float64]:
    """Minimise ``wᵀ G w`` over the simplex, exactly.

    For every set of members the minimum with weights that sum to one is in closed form, ``w ∝ G⁻¹ 1``; the best one without negative
    weights is the answer. Members whose errors are the same can be exchanged: then the mean of the best answers is returned.

    Args:
        gram: ``(member, member)``, symmetric, positive semi-definite, at most 12 members.

    Returns:
        ``(member,)``, >= 0, summing to one.

    Raises:
        ValueError: If it is no Gram matrix.
    """
    gram = _checked(gram)
    members = len(gram)
    if members > MOST_MEMBERS:
        raise ValueError(f"the prior weighs at most {MOST_MEMBERS} members, got {members}; leave out those with the largest errors")
    found = [
        weights
        for size in range(1, members + 1)
        for support in combinations(range(members), size)
        if (weights := _on_support(gram, support)) is not None
    ]
    errors = np.array([weights @ gram @ weights for weights in found])
    slack = _TIE * max(float(np.trace(gram)), _TINY)
    best = np.mean([weights for weights, error in zip(found, errors, strict=True) if error <= errors.min() + slack], axis=0)
    return best / best.sum()


def kkt_violation(gram: Matrix, weights: Matrix) -> float:
    """How far weights are from satisfying the optimality conditions; 0 at the minimum, relative to the largest error.

    At the minimum the gradient ``G w`` is the same for all members in use and not less for the others.
    """
    gradient = np.asarray(gram) @ np.asarray(weights)
    level = float(np.asarray(weights) @ gradient)
    used = np.asarray(weights) > _FEASIBLE
    violation = np.where(used, np.abs(gradient - level), np.maximum(level - gradient, 0))
    return float(violation.max() / max(float(np.diag(gram).max()), _TINY))


def _on_support(gram: Matrix, support: tuple[int, ...]) -> NDArray[np.float64] | None:
    """The minimum over one face of the simplex; None if it lies outside, or if the face has none of its own."""
    part = gram[np.ix_(support, support)]
    system = np.block([[part, np.ones((len(support), 1))], [np.ones((1, len(support))), np.zeros((1, 1))]])
    try:
        solution = np.linalg.solve(system, np.append(np.zeros(len(support)), 1.0))[:-1]
    except np.linalg.LinAlgError:  # errors that depend on each other: a smaller support does as well
        return None
    if not np.isfinite(solution).all() or (solution < -_FEASIBLE).any() or abs(solution.sum() - 1) > _TIE:
        return None
    weights = np.zeros(len(gram))
    weights[list(support)] = np.maximum(solution, 0)
    return weights


def _checked(gram: Matrix) -> NDArray[np.float64]:
    matrix = np.asarray(gram, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 2 or not np.isfinite(matrix).all():  # noqa: PLR2004
        raise ValueError(f"a Gram matrix of two members or more is needed, finite and square, got shape {matrix.shape}")
    tolerance = 1e-8 * max(float(np.abs(matrix).max()), _TINY)
    if np.abs(matrix - matrix.T).max() > tolerance or np.linalg.eigvalsh(matrix).min() < -tolerance:
        raise ValueError(f"a Gram matrix is symmetric with no negative eigenvalue, got {matrix.tolist()}")
    return matrix
