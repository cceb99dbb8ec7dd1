"""World-action models: predicted frames and actions denoised together, each frame at a time of its own."""

from robot.world.checkpoint import WorldActionFile, load_world_action, save_world_action
from robot.world.denoising import Denoising, JointField, Schedule
from robot.world.latents import LatentCodec, LatentConfig, StateFrames
from robot.world.layout import Layout
from robot.world.network import JointTransformer, MixtureOfTransformers
from robot.world.recipe import WorldModules, WorldRecipe
from robot.world.schedules import (
    ActionFirstSchedule,
    ConstantSchedule,
    HalfSchedule,
    MaskedSchedule,
    PyramidSchedule,
    ScheduleConfig,
    SharedSchedule,
    VideoFirstSchedule,
)
from robot.world.tasks import Tasks
from robot.world.times import IndependentTimes, JointTimes, SharedTimes, TrainingTimes
from robot.world.training import WorldActionTraining

__all__ = [
    "ActionFirstSchedule",
    "ConstantSchedule",
    "Denoising",
    "HalfSchedule",
    "IndependentTimes",
    "JointField",
    "JointTimes",
    "JointTransformer",
    "LatentCodec",
    "LatentConfig",
    "Layout",
    "MaskedSchedule",
    "MixtureOfTransformers",
    "PyramidSchedule",
    "Schedule",
    "ScheduleConfig",
    "SharedSchedule",
    "SharedTimes",
    "StateFrames",
    "Tasks",
    "TrainingTimes",
    "VideoFirstSchedule",
    "WorldActionFile",
    "WorldActionTraining",
    "WorldModules",
    "WorldRecipe",
    "load_world_action",
    "save_world_action",
]
