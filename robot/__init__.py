"""Acting: policies and their composition (GPC), world-action models and noise gates, environments, demonstrations, evaluation.

Everything here is light to import; simulators and other libraries are imported where they are used.
"""

from robot.composition import (
    Composed,
    Composer,
    CostGuidance,
    Guidance,
    Member,
    Sampling,
    UnconditionalGuidance,
    sample_with_scheduler,
    smoothness,
)
from robot.demonstrations import Demonstrations, Episode, LeRobotFiles, Recording, RobomimicHDF5
from robot.envs import MetaWorld, NoisySensors, PushT, Robosuite, Toy
from robot.evaluation import Job, Rollout, mcnemar_exact, newcombe_interval, run_episodes, wilson_interval
from robot.execution import ChunkExecutor
from robot.gating.file import NoiseGateFile
from robot.gating.training import GateTraining
from robot.gpc import Composition, GPCPolicy, MemberConfig
from robot.learning import BehaviourCloning, Diffusion, Flow, PolicyFile, load_policy
from robot.noise_gate import ConstantGate, ConstantGateConfig, NoiseGate, NoiseGateConfig
from robot.normalise import NormStats
from robot.policies import ComposablePolicy, FlowPolicy, PolicySource
from robot.search import CompositionEvaluation, WeightSearch
from robot.types import ActionChunk, ActionSpec, Observation, Policy
from robot.world.checkpoint import WorldActionFile
from robot.world.images import ImageFrames
from robot.world.imagine import imagine_episode
from robot.world.latents import StateFrames
from robot.world.network import MixtureOfTransformers
from robot.world.training import WorldActionTraining
from robot.world.vae_training import ImageVAE
from robot.world_action import WorldActionModel
from samplers import PerTokenSchedule

OWNER = "flowrl"  # robotframework also ships a package of this name

__all__ = [
    "OWNER",
    "ActionChunk",
    "ActionSpec",
    "BehaviourCloning",
    "ChunkExecutor",
    "ComposablePolicy",
    "Composed",
    "Composer",
    "Composition",
    "CompositionEvaluation",
    "ConstantGate",
    "ConstantGateConfig",
    "CostGuidance",
    "Demonstrations",
    "Diffusion",
    "Episode",
    "Flow",
    "FlowPolicy",
    "GPCPolicy",
    "GateTraining",
    "Guidance",
    "ImageFrames",
    "ImageVAE",
    "Job",
    "LeRobotFiles",
    "Member",
    "MemberConfig",
    "MetaWorld",
    "MixtureOfTransformers",
    "NoiseGate",
    "NoiseGateConfig",
    "NoiseGateFile",
    "NoisySensors",
    "NormStats",
    "Observation",
    "PerTokenSchedule",
    "Policy",
    "PolicyFile",
    "PolicySource",
    "PushT",
    "Recording",
    "RobomimicHDF5",
    "Robosuite",
    "Rollout",
    "Sampling",
    "StateFrames",
    "Toy",
    "UnconditionalGuidance",
    "WeightSearch",
    "WorldActionFile",
    "WorldActionModel",
    "WorldActionTraining",
    "imagine_episode",
    "load_policy",
    "mcnemar_exact",
    "newcombe_interval",
    "run_episodes",
    "sample_with_scheduler",
    "smoothness",
    "wilson_interval",
]
