"""World-action models: predicted frames and actions denoised together, each frame at a time of its own."""

from robot.world.checkpoint import WorldActionFile, load_world_action, save_world_action
from robot.world.denoising import Denoising, JointField, Schedule
from robot.world.images import ImageFrames
from robot.world.imagine import Imagined, imagine_episode, imagine_windows
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
from robot.world.vae import ConvolutionalVAE, FrameVAE, load_vae, save_vae
from robot.world.vae_training import ImageVAE

__all__ = [
    "ActionFirstSchedule",
    "ConstantSchedule",
    "ConvolutionalVAE",
    "Denoising",
    "FrameVAE",
    "HalfSchedule",
    "ImageFrames",
    "ImageVAE",
    "Imagined",
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
    "imagine_episode",
    "imagine_windows",
    "load_vae",
    "load_world_action",
    "save_vae",
    "save_world_action",
]
