"""Evaluation in closed loop: episodes on given seeds, what became of each, and what the counts can tell."""

from robot.evaluation.episodes import EpisodeResult, Job
from robot.evaluation.pool import EnvironmentFailedError, EnvPool
from robot.evaluation.rollout import EpisodeRunner, run_episodes
from robot.evaluation.run import Rollout, RolloutSummary, read_run
from robot.evaluation.seeds import check_disjoint, parse_seeds
from robot.evaluation.statistics import PairedOutcomes, holm_adjusted, mcnemar_exact, newcombe_interval, null_gain, wilson_interval
from robot.evaluation.summary import ArmSummary, Comparison, compare, summarise

__all__ = [
    "ArmSummary",
    "Comparison",
    "EnvPool",
    "EnvironmentFailedError",
    "EpisodeResult",
    "EpisodeRunner",
    "Job",
    "PairedOutcomes",
    "Rollout",
    "RolloutSummary",
    "check_disjoint",
    "compare",
    "holm_adjusted",
    "mcnemar_exact",
    "newcombe_interval",
    "null_gain",
    "parse_seeds",
    "read_run",
    "run_episodes",
    "summarise",
    "wilson_interval",
]
