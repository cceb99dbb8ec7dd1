"""Gates: policies over the denoising schedule, one time increment per predicted latent and step (NoiseGate, arXiv:2605.07794)."""

from robot.gating.decision import Decision, multiplier
from robot.gating.gate import Gate, GateConfig, GateSettings
from robot.gating.record import GateRecord, View

__all__ = ["Decision", "Gate", "GateConfig", "GateRecord", "GateSettings", "View", "multiplier"]
