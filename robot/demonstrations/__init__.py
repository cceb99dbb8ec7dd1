"""Demonstrations: recorded by scripted experts, read from robomimic's HDF5 files and from LeRobot's dataset folders."""

from robot.demonstrations.data import Demonstrations, DemonstrationSource, Episode

__all__ = ["DemonstrationSource", "Demonstrations", "Episode"]
