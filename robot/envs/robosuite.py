"""Lift, Can and Square: the Robomimic tasks on robosuite 1.5, with state and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from flowrl.errors import MissingExtraError, require
from robot.envs.check import extra_problems, gl_problems
from robot.envs.quiet import quiet
from robot.types import ActionSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    import gymnasium

    from robot.envs.base import Expert

__all__ = ["CAMERAS", "OSC_POSE", "TASKS", "Robosuite", "Task", "settings"]

Task = Literal["Lift", "Can", "Square"]

TASKS: dict[str, str] = {"Lift": "Lift", "Can": "PickPlaceCan", "Square": "NutAssemblySquare"}
"""The tasks and robosuite's names for them."""

CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview", "birdview", "robot0_robotview")
"""Cameras of every task; Robomimic's image policies use the first two."""

OSC_POSE = ("x", "y", "z", "rotation_x", "rotation_y", "rotation_z", "gripper")
"""Names of Robomimic's actions: movement and turn of the gripper in the world's axes, then -1 to open and 1 to close.

All lie in [-1, 1]; 1 asks for 5 cm or 0.5 rad beyond where the gripper is now.
"""

SUBSTEPS_PER_SECOND = 500


@dataclass(frozen=True, kw_only=True)
class Robosuite:
    """One of the Robomimic tasks with a Panda arm under operational-space control (``OSC_POSE``, delta).

    A frame holds ``robot0_eef_pos`` (3, m), ``robot0_eef_quat`` (4, xyzw), ``robot0_gripper_qpos`` (2, m), ``object`` (10 numbers for Lift,
    else 14) and ``<camera>_image`` of every camera. They are measured at the end of the control step; robosuite itself shows them almost
    one control step late, and the relative poses of a fresh episode as zeros. ``reset(seed)`` determines everything that varies between
    episodes.

    Attributes:
        task: ``Lift`` a cube, put a ``Can`` into its bin, or a ``Square`` nut onto its peg.
        cameras: Whose pictures belong to a frame, among :data:`CAMERAS`; none needs no OpenGL.
        camera_size: Height and width of those pictures, pixels.
        control_rate_hz: Control steps per second; a divisor of 500.
        stop_on_success: Whether an episode terminates once it succeeds.
        max_steps: Control steps after which it is truncated (Robomimic: 400).
        render_camera: What ``render()`` shows.
        render_size: Height and width of that picture, pixels.

    Raises:
        ValueError: If a field is out of range.
    """

    task: Task = "Lift"
    cameras: tuple[str, ...] = ()
    camera_size: int = 84
    control_rate_hz: float = 20
    stop_on_success: bool = True
    max_steps: int = 400
    render_camera: str = "agentview"
    render_size: int = 256

    opengl: ClassVar[bool] = True
    """Whether pictures of it, and so its videos, need OpenGL."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if unknown := [name for name in (*self.cameras, self.render_camera) if name not in CAMERAS]:
            raise ValueError(f"{self.task} has no camera {', '.join(unknown)}; it has {', '.join(CAMERAS)}")
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must differ from each other, got {self.cameras}")
        if not self.control_rate_hz > 0 or SUBSTEPS_PER_SECOND % self.control_rate_hz:
            raise ValueError(f"control_rate_hz must divide {SUBSTEPS_PER_SECOND}, got {self.control_rate_hz}; Robomimic uses 20")
        for name in ("camera_size", "max_steps", "render_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        """Of the task, as shown in reports."""
        return self.task

    @property
    def action(self) -> ActionSpec:
        """Robomimic's seven dimensions, :data:`OSC_POSE`."""
        return ActionSpec(names=OSC_POSE, control_rate_hz=self.control_rate_hz, rotation="delta")

    def make(self) -> gymnasium.Env[Any, Any]:
        """A fresh environment, a :class:`robot.envs.task.TaskEnv` around a :class:`robot.envs.robosuite_task.RobosuiteTask`.

        Raises:
            MissingExtraError: If robosuite is missing, its MuJoCo does not fit, or cameras are asked for and nothing can draw them.
        """
        if problems := extra_problems("robosuite"):
            raise MissingExtraError(f"{self.task}: {'; '.join(problems)}")
        from robot.envs.robosuite_task import RobosuiteTask
        from robot.envs.task import TaskEnv

        return TaskEnv(RobosuiteTask(self), max_steps=self.max_steps, stop_on_success=self.stop_on_success, rate_hz=self.control_rate_hz)

    def expert(self, seed: int) -> Expert:
        """A fresh scripted expert; the seed draws its manner (speed, heights, grasp, noise)."""
        from robot.envs.robosuite_experts import CanExpert, LiftExpert, SquareExpert

        experts: dict[str, Callable[[int], Expert]] = {"Lift": LiftExpert, "Can": CanExpert, "Square": SquareExpert}
        return experts[self.task](seed)

    def problems(self) -> list[str]:
        """What keeps the task from running here, each with its remedy."""
        found = extra_problems("robosuite")
        return found if found or not self.cameras else gl_problems()

    def robomimic(self) -> dict[str, Any]:
        """The environment as Robomimic writes it into a data set (``env_args``), so that its tools can play episodes back.

        Raises:
            MissingExtraError: If robosuite is not installed.
        """
        with quiet():
            version = require("robosuite", "robosuite").__version__
        return {
            "env_name": TASKS[self.task],
            "env_version": version,
            "type": 1,
            "env_kwargs": {
                **settings(self),
                "camera_names": list(self.cameras),
                "camera_heights": self.camera_size,
                "camera_widths": self.camera_size,
            },
        }


def settings(source: Robosuite) -> dict[str, Any]:
    """What ``robosuite.make`` gets besides the task's name.

    Robomimic's controller, no renderer (pictures are drawn beside it), and one model for all episodes (the cube of Lift keeps its size).
    """
    arm = {
        "type": "OSC_POSE",
        "input_max": 1,
        "input_min": -1,
        "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
        "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
        "kp": 150,
        "damping_ratio": 1,
        "impedance_mode": "fixed",
        "kp_limits": [0, 300],
        "damping_ratio_limits": [0, 10],
        "position_limits": None,
        "orientation_limits": None,
        "uncouple_pos_ori": True,
        "input_type": "delta",
        "input_ref_frame": "world",
        "interpolation": None,
        "ramp_ratio": 0.2,
        "gripper": {"type": "GRIP"},
    }
    return {
        "robots": "Panda",
        "controller_configs": {"type": "BASIC", "body_parts": {"right": arm}},
        "control_freq": source.control_rate_hz,
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "use_camera_obs": False,
        "ignore_done": True,
        "hard_reset": False,
        "renderer": "mujoco",
        "seed": 0,
    }
