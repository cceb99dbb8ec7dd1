"""Demonstrations: recorded by scripted experts, read from robomimic's HDF5 files and from LeRobot's dataset folders."""

from robot.demonstrations.data import Demonstrations, DemonstrationSource, Episode
from robot.demonstrations.hdf5 import RobomimicHDF5, write_hdf5
from robot.demonstrations.lerobot import LeRobotFiles
from robot.demonstrations.record import Recorded, Recording

__all__ = ["DemonstrationSource", "Demonstrations", "Episode", "LeRobotFiles", "Recorded", "Recording", "RobomimicHDF5", "write_hdf5"]
