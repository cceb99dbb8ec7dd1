"""Meta-World: 50 tasks of a Sawyer arm with the goal visible, and their scripted experts.

Source: Yu et al., "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning" (arXiv:1910.10897), package
``metaworld`` 3.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flowrl.errors import MissingExtraError, close_match, require
from robot.envs.check import extra_problems, gl_problems
from robot.envs.offscreen import Offscreen
from robot.types import ActionSpec

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.spaces import Box
    from numpy.typing import NDArray

    from robot.envs.base import Frame
    from robot.envs.task import Outcome

__all__ = ["METAWORLD_TASKS", "MetaWorld"]

METAWORLD_TASKS = tuple(
    """assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall button-press-wall
    coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open door-unlock drawer-close drawer-open
    faucet-close faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side lever-pull peg-insert-side
    peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-back plate-slide-back-side plate-slide-side push
    push-back push-wall reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close window-open""".split()  # noqa: SIM905
)
"""Names of the tasks, without Meta-World's ``-v3``."""

_RATE_HZ = 80.0  # five simulation steps of 2.5 ms
_SENSORS = {"proprioception": slice(0, 4), "object": slice(4, 18), "goal": slice(36, 39), "state": slice(0, 39)}


@dataclass(frozen=True, kw_only=True)
class MetaWorld:
    """One Meta-World task; ``reset(seed=…)`` determines where object and goal lie.

    An action moves the hand's target by up to 1 cm along each axis, and closes (1) or opens (-1) the gripper. Sensors: ``proprioception``
    (hand x, y, z in metres, gripper opening in [0, 1]), ``object`` (14: position in metres and quaternion of up to two objects, zeros where
    there is none), ``goal`` (x, y, z in metres), ``state`` (39: all of it, now and one step before, as Meta-World gives it) and ``image``.

    Attributes:
        task: One of :data:`METAWORLD_TASKS`.
        sensors: Which of the sensors to show.
        max_steps: Control steps (80 a second) after which an episode is truncated.
        stop_on_success: Whether success ends the episode.
        camera: Of ``image`` and of videos: ``corner``, ``corner2``, ``corner3``, ``corner4``, ``topview``, ``behindGripper`` or
            ``gripperPOV``.
        image_size: Pixels along each side of ``image``.
        video_size: Pixels along each side of a video's picture.
        shadows: Whether pictures have shadows; without them drawing takes half the time or less.

    Raises:
        ValueError: If the task or a sensor is unknown, or a number is out of range.
    """

    task: str
    sensors: tuple[str, ...] = ("proprioception", "object", "goal")
    max_steps: int = 500
    stop_on_success: bool = True
    camera: str = "corner2"
    image_size: int = 84
    video_size: int = 240
    shadows: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", self.task.removesuffix("-v3"))
        if self.task not in METAWORLD_TASKS:
            raise ValueError(f"Meta-World has no task {self.task!r}{close_match(self.task, METAWORLD_TASKS)}")
        if unknown := [name for name in self.sensors if name not in (*_SENSORS, "image")]:
            raise ValueError(f"Meta-World has no sensor {unknown[0]!r}{close_match(unknown[0], [*_SENSORS, 'image'])}")
        if not self.sensors or min(self.max_steps, self.image_size, self.video_size) < 1:
            raise ValueError(f"sensors must not be empty, max_steps, image_size and video_size must be >= 1, got {self}")

    @property
    def name(self) -> str:
        """Of the task."""
        return f"Meta-World {self.task}"

    @property
    def action(self) -> ActionSpec:
        """Displacement of the hand and effort of the gripper."""
        return ActionSpec(names=("x", "y", "z", "gripper"), control_rate_hz=_RATE_HZ)

    def make(self) -> gymnasium.Env[Any, Any]:
        """A fresh environment.

        Raises:
            MissingExtraError: If Meta-World is not installed.
        """
        require("gymnasium", "metaworld")
        from robot.envs.task import TaskEnv

        return TaskEnv(_Sawyer(self), max_steps=self.max_steps, stop_on_success=self.stop_on_success, rate_hz=_RATE_HZ)

    def expert(self, seed: int) -> _Script:  # noqa: ARG002  (the scripts are deterministic)
        """Meta-World's own scripted policy of the task."""
        return _Script(require("metaworld.policies", "metaworld").ENV_POLICY_MAP[f"{self.task}-v3"]())

    def problems(self) -> list[str]:
        """What keeps it from running here."""
        found = extra_problems("metaworld")
        return found if found or "image" not in self.sensors else gl_problems()


class _Sawyer:
    """One Meta-World task in MuJoCo."""

    def __init__(self, source: MetaWorld) -> None:
        from robot.envs.task import picture_space, vector_space

        self._source = source
        self.env = _load(source.task)
        self.observation: NDArray[np.float64] = np.zeros(39)
        self._camera: _Camera | None = None
        self.bounds = (-np.ones(4, np.float32), np.ones(4, np.float32))
        vectors = {name: vector_space(part.stop - part.start) for name, part in _SENSORS.items()}
        every = vectors | {"image": picture_space(source.image_size, source.image_size)}
        self.sensors: dict[str, Box] = {name: every[name] for name in source.sensors}

    def begin(self, seed: int) -> Frame:
        """Start an episode."""
        self.env.seed(seed)
        self.observation = self.env.reset()[0]
        return self._frame()

    def step(self, action: NDArray[np.float32]) -> Outcome:
        """Act."""
        from robot.envs.task import Outcome

        self.env.curr_path_length = 0  # the time limit is ours
        self.observation, reward, _, _, info = self.env.step(action)
        return Outcome(
            frame=self._frame(), reward=float(reward), success=bool(info["success"]), info={"grasped": bool(info["grasp_success"])}
        )

    def state(self) -> NDArray[Any]:
        """Positions and velocities of all joints, and the target of the hand."""
        data = self.env.data
        return np.concatenate([data.qpos, data.qvel, data.mocap_pos.ravel()])

    def picture(self) -> NDArray[np.uint8]:
        """From the chosen camera."""
        return self._view(self._source.video_size)

    def close(self) -> None:
        """Free simulator and camera."""
        if self._camera is not None:
            self._camera.close()
        self._camera = None
        self.env.close()

    def _frame(self) -> Frame:
        return {
            name: self._view(self._source.image_size) if name == "image" else self.observation[_SENSORS[name]].astype(np.float32)
            for name in self._source.sensors
        }

    def _view(self, size: int) -> NDArray[np.uint8]:
        if self._camera is None:
            self._camera = _Camera(self.env.model, self._source)
        picture = self._camera.picture(self.env.model, self.env.data, self._source.camera, size)
        return np.ascontiguousarray(picture[::-1, ::-1]) if self._source.camera in _UPSIDE_DOWN else picture


_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")  # as Meta-World places them


def _load(task: str) -> Any:
    """Build the simulation with the goal visible and every episode drawn from its seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = require("metaworld.env_dict", "metaworld").ALL_V3_ENVIRONMENTS[f"{task}-v3"](render_mode=None)
    if not np.isclose(1 / env.dt, _RATE_HZ):
        raise MissingExtraError(f"this metaworld runs {task} at {1 / env.dt:g} Hz, not {_RATE_HZ:g}; install metaworld 3.1")
    env._partially_observable = False  # noqa: SLF001  (the library's own observable classes draw only one goal)
    env.__dict__.pop("sawyer_observation_space", None)  # cached with the goal clipped to zero
    env._freeze_rand_vec, env.seeded_rand_vec = False, True  # noqa: SLF001
    env._set_task_called = True  # noqa: SLF001
    return env


class _Camera(Offscreen):
    """Draws all geometry: Meta-World keeps its objects where others keep what only collides."""

    def __init__(self, model: Any, source: MetaWorld) -> None:
        super().__init__(model, max(source.image_size, source.video_size))
        self._options.geomgroup[0] = 1
        self._scene.flags[self._mujoco.mjtRndFlag.mjRND_SHADOW] = int(source.shadows)


class _Script:
    """A scripted policy; it reads the simulator's own observation, so noisy sensors do not disturb it."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def act(self, env: gymnasium.Env[Any, Any], frame: Frame) -> NDArray[np.float32]:  # noqa: ARG002
        """The next action."""
        simulation: Any = env.unwrapped.simulation  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it asks for more than one step can move
            action = self._policy.get_action(simulation.observation)
        return np.clip(action, -1, 1).astype(np.float32)
