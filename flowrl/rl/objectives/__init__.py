"""Objectives: one family a file, all of them in `OBJECTIVES`."""

from flowrl.rl.objectives.base import OBJECTIVES, KeptSteps, Objective, Stateless, StepBatch, needs_reference, register_objective
from flowrl.rl.objectives.ppo import PolicyGradient, PPOClip

__all__ = [
    "OBJECTIVES",
    "KeptSteps",
    "Objective",
    "PPOClip",
    "PolicyGradient",
    "Stateless",
    "StepBatch",
    "needs_reference",
    "register_objective",
]
