"""What an environment and its scripted expert have to offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from numpy.typing import NDArray

if TYPE_CHECKING:
    import gymnasium
    import numpy as np

    from robot.types import ActionSpec

__all__ = ["EnvSource", "Expert", "Frame"]

Frame: TypeAlias = Mapping[str, NDArray[Any]]
"""One time step of an environment's observations: float32 vectors ``(feature,)``, keypoints ``(point, coordinate)``, uint8 pictures
``(height, width, 3)``."""


class Expert(Protocol):
    """A scripted policy that may look into the simulator; it knows when its own episode began."""

    def act(self, env: gymnasium.Env[Any, Any], frame: Frame) -> NDArray[np.float32]:
        """The next action ``(dof,)``, physical units.

        Args:
            env: The environment being acted in; ``env.unwrapped`` gives the simulator.
            frame: What the environment shows now.
        """
        ...


class EnvSource(Protocol):
    """An environment as a config describes it; the simulator is imported when one is made.

    The environments are Gymnasium's: ``reset(seed=…)`` determines the episode, observations are a :data:`Frame`, actions are float32
    ``(dof,)`` in physical units, ``info["success"]`` tells at every step whether the task is solved now, ``terminated`` is the task's own
    end, ``truncated`` the time limit's, and ``render()`` gives an uint8 picture.
    """

    @property
    def name(self) -> str:
        """Of the task, as shown in reports."""
        ...

    @property
    def action(self) -> ActionSpec:
        """What an action means."""
        ...

    @property
    def max_steps(self) -> int:
        """Control steps after which an episode is truncated."""
        ...

    def make(self) -> gymnasium.Env[Any, Any]:
        """A fresh environment.

        Raises:
            MissingExtraError: If the simulator is not installed or cannot run here.
        """
        ...

    def expert(self, seed: int) -> Expert:
        """A fresh scripted expert for one episode.

        Raises:
            ValueError: If there is none for this task.
        """
        ...

    def problems(self) -> list[str]:
        """What keeps it from running here, each with its remedy; empty if nothing does."""
        ...
