"""A robosuite task under :class:`robot.envs.task.TaskEnv`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from robot.envs.offscreen import Offscreen, shared_offscreen
from robot.envs.quiet import quiet
from robot.envs.robosuite import OSC_POSE, TASKS, settings
from robot.envs.task import Outcome, picture_space, vector_space

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gymnasium import spaces
    from numpy.typing import NDArray

    from robot.envs.base import Frame
    from robot.envs.robosuite import Robosuite

__all__ = ["RobosuiteTask"]

STATE = {
    "robot0_eef_pos": "robot0_eef_pos",
    "robot0_eef_quat": "robot0_eef_quat",
    "robot0_gripper_qpos": "robot0_gripper_qpos",
    "object": "object-state",
}


class RobosuiteTask:
    """Lift, Can or Square with exact frames, episodes that a seed determines, and pictures drawn only when somebody looks.

    Attributes:
        source: The config that made it.
        robosuite: The environment of robosuite's own.
    """

    def __init__(self, source: Robosuite) -> None:
        with quiet():
            import robosuite

            self.robosuite: Any = robosuite.make(TASKS[source.task], **settings(source))
        self.source = source
        self._drawing: Offscreen | None = None
        sensors = self.robosuite._observables  # noqa: SLF001
        for name, sensor in sensors.items():  # the others would be computed 25 times a control step
            sensor.set_enabled(name in STATE or (sensor.modality == "object" and sensor.is_enabled()))
        self._sizes = {name: value.size for name, value in self._vectors().items()}

    @property
    def sensors(self) -> Mapping[str, spaces.Box]:
        """Space of each sensor."""
        side = self.source.camera_size
        pictures = {f"{camera}_image": picture_space(side, side) for camera in self.source.cameras}
        return {name: vector_space(size) for name, size in self._sizes.items()} | pictures

    @property
    def bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """-1 and 1 for each of the seven dimensions."""
        high = np.ones(len(OSC_POSE), np.float32)
        return -high, high

    def begin(self, seed: int) -> Frame:
        """Start the episode that this seed determines: where the arm and the objects stand."""
        generator = np.random.default_rng(seed)
        self.robosuite.rng = generator
        for sampler in _samplers(self.robosuite.placement_initializer):
            sampler.rng = generator
        self.robosuite.reset()
        return self._frame()

    def step(self, action: NDArray[np.float32]) -> Outcome:
        """Act for one control step; the reward is 1 where the task is solved."""
        self.robosuite.step(action.astype(np.float64))
        self.robosuite.sim.forward()
        success = bool(self.robosuite._check_success())  # noqa: SLF001
        return Outcome(frame=self._frame(), reward=float(success), success=success)

    def state(self) -> NDArray[np.float64]:
        """Time, joint positions and velocities of everything, as Robomimic stores them (``states``)."""
        return np.asarray(self.robosuite.sim.get_state().flatten(), dtype=np.float64)

    def restore(self, state: NDArray[np.floating[Any]]) -> Frame:
        """Put everything where :meth:`state` found it, and look.

        This is for playing back: what the controller remembers is not part of a state.

        Raises:
            ValueError: If the state is of another task.
        """
        given, here = np.asarray(state, dtype=np.float64), self.state()
        if given.shape != here.shape:
            raise ValueError(f"a state of {self.source.task} has shape {here.shape}, got {given.shape}")
        self.robosuite.sim.set_state_from_flattened(given)
        self.robosuite.sim.forward()
        return self._frame()

    def model_xml(self) -> str:
        """The model, as Robomimic stores it (``model_file``)."""
        with quiet():  # it leaves a file open
            return str(self.robosuite.sim.model.get_xml())

    def picture(self) -> NDArray[np.uint8]:
        """What ``render_camera`` sees, ``(render_size, render_size, 3)``.

        Raises:
            MissingExtraError: If nothing can draw here.
        """
        return self._picture(self.source.render_camera, self.source.render_size)

    def close(self) -> None:
        """Free the simulation and the drawing context; closing twice is harmless."""
        self._drawing = None  # freed with the last environment that draws with it
        if self.robosuite is not None:
            self.robosuite.close()
            self.robosuite = None

    def _vectors(self) -> dict[str, NDArray[np.float32]]:
        for _ in range(2):  # relative poses are computed from what the pass before found
            seen = self.robosuite._get_observations(force_update=True)  # noqa: SLF001
        return {name: np.asarray(seen[theirs], dtype=np.float32) for name, theirs in STATE.items()}

    def _frame(self) -> Frame:
        pictures = {f"{camera}_image": self._picture(camera, self.source.camera_size) for camera in self.source.cameras}
        return {**self._vectors(), **pictures}

    def _picture(self, camera: str, size: int) -> NDArray[np.uint8]:
        model, data = self.robosuite.sim.model._model, self.robosuite.sim.data._data  # noqa: SLF001
        if self._drawing is None:
            self._drawing = shared_offscreen(self.source.task, model, max(self.source.render_size, self.source.camera_size))
        return self._drawing.picture(model, data, camera, size)


def _samplers(sampler: Any) -> Iterator[Any]:
    """A placement sampler and those it is made of."""
    yield sampler
    for inner in getattr(sampler, "samplers", {}).values():
        yield from _samplers(inner)
