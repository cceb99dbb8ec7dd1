"""What the best of several equal candidates seems to gain by luck alone, where they share seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["luck_on_common_seeds"]


def luck_on_common_seeds(outcomes: NDArray[np.bool_], *, shuffles: int = 2000, seed: int = 0) -> float:
    """How far the best success rate would lie above the mean one if the weight did not matter, for candidates run on common seeds.

    :func:`robot.evaluation.statistics.null_gain` answers the same for candidates with seeds of their own and so bounds it from above.

    Under no effect the weight is a label that may be exchanged within a seed: each shuffle permutes the candidates' outcomes seed by
    seed, which keeps how hard every seed is, and takes the best rate minus the mean rate.

    Args:
        outcomes: ``(candidate, seed)``, whether it succeeded.
        shuffles: How many permutations to average over.
        seed: Of the permutations.

    Raises:
        ValueError: If there are no outcomes.
    """
    if outcomes.ndim != 2 or not outcomes.size:  # noqa: PLR2004
        raise ValueError(f"outcomes must be (candidate, seed) with at least one of each, got shape {outcomes.shape}")
    generator = np.random.default_rng(seed)
    best = [generator.permuted(outcomes, axis=0).mean(1).max() for _ in range(shuffles)]
    return float(np.mean(best) - outcomes.mean())
