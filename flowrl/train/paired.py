"""Means, paired differences and their 95 % confidence intervals (Student's t)."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How one score moved between two models that drew the same images from the same noise.

    Attributes:
        before: Mean score of the first model.
        after: Mean score of the second model.
        difference: Mean of ``after - before`` over the pairs.
        ci95: Half-width of the 95 % interval of ``difference`` (paired t). It speaks for new noise; with several images per prompt it does
            not speak for prompts outside the list.
        win_rate: Share of pairs in which the second model scored higher, in [0, 1]; a tie counts one half.
        pairs: Number of pairs.
        spread: Standard deviation of the score over images, root mean square of the two models'.
    """

    before: float
    after: float
    difference: float
    ci95: float
    win_rate: float
    pairs: int
    spread: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.difference) > self.ci95


def mean_ci95(values: Tensor) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % confidence interval.

    Args:
        values: Independent scores ``(count,)``, any unit; at least two.

    Raises:
        ValueError: If there are fewer than two values.
    """
    if values.ndim != 1 or len(values) <= 1:
        raise ValueError(
            f"a confidence interval needs two values or more in one axis, got shape {tuple(values.shape)}; evaluate more images"
        )
    from scipy.special import stdtrit

    values = values.double()
    quantile = float(stdtrit(len(values) - 1, 0.975))
    return values.mean().item(), quantile * values.std(correction=1).item() / math.sqrt(len(values))


def spread_of(ci95: float, count: int) -> float:
    """Return the standard deviation of ``count`` values whose mean has this 95 % half-width: `mean_ci95` backwards."""
    from scipy.special import stdtrit

    return ci95 * math.sqrt(count) / float(stdtrit(count - 1, 0.975))


def paired_difference(before: Tensor, after: Tensor) -> PairedDifference:
    """Compare two models score by score.

    Args:
        before: Scores of the first model ``(image,)``, any unit.
        after: Scores of the second model for the same prompts and noise ``(image,)``.

    Raises:
        ValueError: If the two differ in length or have fewer than two scores.
    """
    if before.shape != after.shape:
        shapes = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise ValueError(f"paired scores need the same images, got shapes {shapes}; evaluate both models with one Evaluation")
    before, after = before.double(), after.double()
    difference, ci95 = mean_ci95(after - before)
    wins = (after > before).double() + 0.5 * (after == before).double()
    return PairedDifference(
        before=before.mean().item(),
        after=after.mean().item(),
        difference=difference,
        ci95=ci95,
        win_rate=wins.mean().item(),
        pairs=len(before),
        spread=math.sqrt((before.var().item() + after.var().item()) / 2),
    )
