"""Learning policies from demonstrations: processes, backbones, encoders, behaviour cloning and its checkpoints."""

from robot.learning.checkpoint import POLICY_FILE, PolicyFile, load_policy, read_recipe, read_training, save_policy
from robot.learning.cloning import BehaviourCloning
from robot.learning.encoders import KeypointEncoder, ObservationEncoder, SensorStats, StateEncoder
from robot.learning.examples import TwoPaths, TwoWays
from robot.learning.images import ImageEncoder
from robot.learning.lesson import Curve, Lesson, Training
from robot.learning.mlp import ActionMLP
from robot.learning.process import Diffusion, Flow, Process
from robot.learning.recipe import Recipe
from robot.learning.transformer import ActionTransformer
from robot.learning.unet import ActionUNet
from robot.learning.windows import Windows

__all__ = [
    "POLICY_FILE",
    "ActionMLP",
    "ActionTransformer",
    "ActionUNet",
    "BehaviourCloning",
    "Curve",
    "Diffusion",
    "Flow",
    "ImageEncoder",
    "KeypointEncoder",
    "Lesson",
    "ObservationEncoder",
    "PolicyFile",
    "Process",
    "Recipe",
    "SensorStats",
    "StateEncoder",
    "Training",
    "TwoPaths",
    "TwoWays",
    "Windows",
    "load_policy",
    "read_recipe",
    "read_training",
    "save_policy",
]
