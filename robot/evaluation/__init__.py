"""Evaluation in closed loop: episodes on given seeds, what became of each, and what the counts can tell."""

from robot.evaluation.episodes import EpisodeResult, Job
from robot.evaluation.pool import EnvironmentFailedError, EnvPool
from robot.evaluation.rollout import EpisodeRunner, run_episodes
from robot.evaluation.seeds import check_disjoint, parse_seeds
from robot.evaluation.statistics import PairedOutcomes, holm_adjusted, mcnemar_exact, newcombe_interval, null_gain, wilson_interval

__all__ = [
    "EnvPool",
    "EnvironmentFailedError",
    "EpisodeResult",
    "EpisodeRunner",
    "Job",
    "PairedOutcomes",
    "check_disjoint",
    "holm_adjusted",
    "mcnemar_exact",
    "newcombe_interval",
    "null_gain",
    "parse_seeds",
    "run_episodes",
    "wilson_interval",
]
