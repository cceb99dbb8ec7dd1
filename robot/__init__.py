"""Acting: policies and their composition (GPC), environments, demonstrations, evaluation, weight search."""

from robot.composition import Composed, Composer, CostGuidance, Guidance, Member, Sampling, UnconditionalGuidance, smoothness
from robot.evaluation.statistics import mcnemar_exact, wilson_interval
from robot.execution import ChunkExecutor
from robot.normalise import NormStats
from robot.policies import ComposablePolicy, Composition, FlowPolicy, GPCPolicy, MemberConfig, PolicySource
from robot.types import ActionChunk, ActionSpec, Observation, Policy

OWNER = "flowrl"

__all__ = [
    "ActionChunk",
    "ActionSpec",
    "ChunkExecutor",
    "ComposablePolicy",
    "Composed",
    "Composer",
    "Composition",
    "CostGuidance",
    "FlowPolicy",
    "GPCPolicy",
    "Guidance",
    "Member",
    "MemberConfig",
    "NormStats",
    "Observation",
    "Policy",
    "PolicySource",
    "Sampling",
    "UnconditionalGuidance",
    "mcnemar_exact",
    "smoothness",
    "wilson_interval",
]
