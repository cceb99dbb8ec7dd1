"""Gates: policies over the denoising schedule, one time increment per predicted latent and step (NoiseGate, arXiv:2605.07794)."""

from robot.gating.decision import Decision, multiplier
from robot.gating.gate import Gate, GateConfig, GateSettings
from robot.gating.proxy import ActionErrorWarmUp
from robot.gating.record import GateRecord, View
from robot.gating.rewards import EpisodeReward, OutcomeReward
from robot.gating.training import GateTraining

__all__ = [
    "ActionErrorWarmUp",
    "Decision",
    "EpisodeReward",
    "Gate",
    "GateConfig",
    "GateRecord",
    "GateSettings",
    "GateTraining",
    "OutcomeReward",
    "View",
    "multiplier",
]
