"""Evaluation in closed loop: episodes on given seeds, what became of each, and what the counts can tell."""

from robot.evaluation.statistics import PairedOutcomes, holm_adjusted, mcnemar_exact, newcombe_interval, null_gain, wilson_interval

__all__ = ["PairedOutcomes", "holm_adjusted", "mcnemar_exact", "newcombe_interval", "null_gain", "wilson_interval"]
