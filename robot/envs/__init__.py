"""Environments as configs describe them; a simulator is imported when an environment is made."""

from robot.envs.base import EnvSource, Expert, Frame
from robot.envs.metaworld import METAWORLD_TASKS, MetaWorld
from robot.envs.pusht import PushT
from robot.envs.robosuite import Robosuite
from robot.envs.toy import Toy, toy_success_rate
from robot.envs.wrappers import NoisySensors

__all__ = [
    "METAWORLD_TASKS",
    "EnvSource",
    "Expert",
    "Frame",
    "MetaWorld",
    "NoisySensors",
    "PushT",
    "Robosuite",
    "Toy",
    "toy_success_rate",
]
