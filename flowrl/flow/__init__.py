"""What a flow is: paths, fields, transitions, dynamics, trajectories. One legend: t = 1 is noise, t = 0 is data."""

from flowrl.flow.condition import Condition
from flowrl.flow.dynamics import CPS, ODE, Ancestral, DanceSDE, Dynamics, FlowSDE, kept_noise
from flowrl.flow.field import ClassifierFreeGuidance, DiffusionField, VelocityField, evaluations_per_state
from flowrl.flow.guidance import IntervalGuidance, NormKeepingGuidance, NormLimitingGuidance, patch_norm, row_norm
from flowrl.flow.matching import flow_matching_error, flow_matching_loss, logit_normal_times
from flowrl.flow.path import PREDICTIONS, AffinePath, Endpoints, PathSample, RectifiedFlow, VariancePreserving
from flowrl.flow.tail import has_tail, tail_of
from flowrl.flow.times import dynamic_shift, shift_time, shifted_times
from flowrl.flow.trajectory import Sampler, Trajectory
from flowrl.flow.transition import Reduction, Transition

__all__ = [
    "CPS",
    "ODE",
    "PREDICTIONS",
    "AffinePath",
    "Ancestral",
    "ClassifierFreeGuidance",
    "Condition",
    "DanceSDE",
    "DiffusionField",
    "Dynamics",
    "Endpoints",
    "FlowSDE",
    "IntervalGuidance",
    "NormKeepingGuidance",
    "NormLimitingGuidance",
    "PathSample",
    "RectifiedFlow",
    "Reduction",
    "Sampler",
    "Trajectory",
    "Transition",
    "VariancePreserving",
    "VelocityField",
    "dynamic_shift",
    "evaluations_per_state",
    "flow_matching_error",
    "flow_matching_loss",
    "has_tail",
    "kept_noise",
    "logit_normal_times",
    "patch_norm",
    "row_norm",
    "shift_time",
    "shifted_times",
    "tail_of",
]
