"""What success counts can tell: intervals, paired tests, and how lucky the best of several looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PairedOutcomes", "holm_adjusted", "mcnemar_exact", "newcombe_interval", "null_gain", "wilson_interval"]


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a success probability by inverting the score test (Wilson 1927); it never leaves [0, 1].

    Args:
        successes: How often it succeeded, 0 to ``trials``.
        trials: How often it was tried, at least 1.
        confidence: In (0, 1).

    Returns:
        Lower and upper end; 86 of 100 give 0.779 and 0.915.

    Raises:
        ValueError: If a count is negative or no whole number, there are more successes than trials, or there is no trial.
    """
    successes, trials = _count(successes, "successes"), _count(trials, "trials")
    if trials == 0:
        raise ValueError("trials must be at least 1, got 0; without a trial nothing is known about the success probability")
    if successes > trials:
        raise ValueError(f"successes must be 0 to trials, got {successes} of {trials}; the first argument is the successes")
    squared = _quantile(confidence) ** 2
    failures = trials - successes
    middle = (successes + squared / 2) / (trials + squared)
    half = math.sqrt(squared * (successes * failures / trials + squared / 4)) / (trials + squared)
    return (middle - half if successes else 0.0), (middle + half if failures else 1.0)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact test that two policies succeed equally often on common seeds (McNemar 1947).

    Only seeds on which exactly one of them succeeds speak; if both are as good, each such seed is a fair coin.

    Args:
        only_first: Seeds on which only the first succeeded.
        only_second: Seeds on which only the second succeeded.

    Returns:
        The p-value in (0, 1]: that of ``scipy.stats.binomtest(only_first, only_first + only_second)``; 1 if no seed speaks.

    Raises:
        ValueError: If a count is negative or no whole number.
    """
    from scipy.special import bdtr

    first, second = _count(only_first, "only_first"), _count(only_second, "only_second")
    return min(1.0, 2 * float(bdtr(min(first, second), first + second, 0.5)))


def newcombe_interval(table: PairedOutcomes, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference first − second of two success probabilities on common seeds.

    Newcombe's hybrid score interval (Statistics in Medicine 17:2635, 1998, method 10): Wilson limits of both, joined by their
    correlation. It stays within [−1, 1] and has a width even where no seed tells the two apart.

    Args:
        table: Which of the two succeeded on how many seeds.
        confidence: In (0, 1).

    Raises:
        ValueError: If there is no pair.
    """
    first, second = table.both + table.only_first, table.both + table.only_second
    rates = first / table.pairs, second / table.pairs
    lows, highs = zip(*(wilson_interval(count, table.pairs, confidence) for count in (first, second)), strict=True)
    phi, difference = _correlation(table), rates[0] - rates[1]
    below = _joined(rates[0] - lows[0], highs[1] - rates[1], phi)
    above = _joined(highs[0] - rates[0], rates[1] - lows[1], phi)
    return max(-1.0, difference - below), min(1.0, difference + above)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction (1979) for having made several tests, in the order given.

    Args:
        p_values: In [0, 1].

    Raises:
        ValueError: If one is outside.
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"p-values must lie in [0, 1], got {wrong}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def null_gain(candidates: int, rate: float, trials: int) -> float:
    """By how much the best of several equally good candidates is expected to look better than it is.

    Args:
        candidates: How many were tried, each on seeds of its own, at least 1.
        rate: The success probability of every one, in [0, 1].
        trials: Of each candidate, at least 1.

    Returns:
        Mean of the highest success rate, minus ``rate``; 9 candidates of 65 % in 100 trials each give 0.070. On common seeds candidates
        succeed and fail together, and the gain is smaller.

    Raises:
        ValueError: If an argument is out of range.
    """
    import numpy as np
    from scipy.special import bdtr

    candidates, trials = _count(candidates, "candidates"), _count(trials, "trials")
    if not (candidates and trials and 0 <= rate <= 1):
        raise ValueError(f"candidates and trials must be at least 1 and rate in [0, 1], got {candidates}, {trials} and {rate}")
    reached = bdtr(np.arange(trials), trials, rate) ** candidates  # probability that the best has at most so many successes
    return float((1 - reached).sum() / trials - rate)


@dataclass(frozen=True, kw_only=True)
class PairedOutcomes:
    """On how many common seeds which of two policies succeeded: a 2×2 table.

    Attributes:
        both: Seeds on which both succeeded.
        only_first: Seeds on which only the first did.
        only_second: Seeds on which only the second did.
        neither: Seeds on which none did.

    Raises:
        ValueError: If a count is negative or no whole number, or all are 0.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    def __post_init__(self) -> None:
        for name in ("both", "only_first", "only_second", "neither"):
            object.__setattr__(self, name, _count(getattr(self, name), name))
        if not self.pairs:
            raise ValueError("a paired comparison needs at least one common seed, got none")

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> PairedOutcomes:
        """Count outcomes.

        Args:
            first: Whether the first policy succeeded, one entry per seed.
            second: The same of the second policy, same seeds in the same order.

        Raises:
            ValueError: If they differ in length or are empty.
        """
        if len(first) != len(second):
            raise ValueError(f"paired outcomes need the same seeds in the same order, got {len(first)} and {len(second)} outcomes")
        pairs = [(bool(one), bool(other)) for one, other in zip(first, second, strict=True)]
        counts = {pair: pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))}
        return cls(**dict(zip(("both", "only_first", "only_second", "neither"), counts.values(), strict=True)))

    @property
    def pairs(self) -> int:
        """Number of common seeds."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the first minus that of the second."""
        return (self.only_first - self.only_second) / self.pairs

    @property
    def p_value(self) -> float:
        """Of the exact McNemar test."""
        return mcnemar_exact(self.only_first, self.only_second)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of the difference (Newcombe)."""
        return newcombe_interval(self, confidence)


def _count(value: float, name: str) -> int:
    """A whole number >= 0, whatever library it comes from."""
    number = float(value)
    if not (math.isfinite(number) and number.is_integer() and number >= 0):
        raise ValueError(f"{name} must be a whole number >= 0, got {value}; give counts, not rates")
    return int(number)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}; 95 % is 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _correlation(table: PairedOutcomes) -> float:
    """Phi of the table, with Newcombe's continuity correction of positive ones; 0 where a margin is empty."""
    both, first, second, neither = table.both, table.only_first, table.only_second, table.neither
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    product = both * neither - first * second
    excess = max(0.0, product - table.pairs / 2) if product > 0 else product
    return excess / math.sqrt(margins) if margins else 0.0


def _joined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))
