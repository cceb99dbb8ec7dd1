"""Whether composed policies disagree more in the episodes that fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robot.evaluation.episodes import EpisodeResult

__all__ = ["DisagreementSignal", "disagreement_signal"]

FEWEST = 5
ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class DisagreementSignal:
    """Disagreement of failed against successful episodes: an association, as the means are over whole episodes, also after a mishap.

    Attributes:
        failures: Mean over failed episodes, nats.
        successes: Mean over successful ones, nats.
        auc: Probability that a failed episode shows more of it than a successful one: 0.5 says nothing, 1 tells them all apart.
        low: Lower end of the 95 % interval of ``auc``.
        high: Its upper end.
        episodes: Failed, then successful ones.
    """

    failures: float
    successes: float
    auc: float
    low: float
    high: float
    episodes: tuple[int, int]


def disagreement_signal(results: Sequence[EpisodeResult]) -> DisagreementSignal | None:
    """Compare failures with successes of one arm.

    The area under the ROC curve with DeLong's interval (1988): the variance of each episode's own share of won pairs.

    Args:
        results: Of one arm; episodes without a disagreement, and those that crashed, are left out.

    Returns:
        None unless at least five failures and five successes have one, and they differ by more than rounding.
    """
    told = [(result.disagreement, result.success) for result in results if result.disagreement is not None and not result.crashed]
    failures = np.array([value for value, success in told if not success])
    successes = np.array([value for value, success in told if success])
    if min(len(failures), len(successes)) < FEWEST or np.ptp([value for value, _ in told]) <= ROUNDING * failures.mean():
        return None
    won = (failures[:, None] > successes).astype(float) + 0.5 * (failures[:, None] == successes)
    auc = won.mean()
    half = 1.959964 * np.sqrt(won.mean(1).var(ddof=1) / len(failures) + won.mean(0).var(ddof=1) / len(successes))
    return DisagreementSignal(
        failures=float(failures.mean()),
        successes=float(successes.mean()),
        auc=float(auc),
        low=float(max(0.0, auc - half)),
        high=float(min(1.0, auc + half)),
        episodes=(len(failures), len(successes)),
    )
