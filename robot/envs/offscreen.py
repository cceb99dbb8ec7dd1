"""Pictures of a MuJoCo simulation without a window."""

from __future__ import annotations

import ctypes.util
import importlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from flowrl.errors import MissingExtraError, require

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BACK_ENDS", "INSTALL_GL", "Offscreen", "gl_back_end"]

BACK_ENDS = {"egl": "EGL", "osmesa": "OSMesa"}
"""Values of ``MUJOCO_GL`` that draw without a window, each with the library that it needs."""

INSTALL_GL = "install the system packages libegl1 and libegl-mesa0, or libosmesa6 and set MUJOCO_GL=osmesa"
"""What to do where nothing draws."""


def gl_back_end() -> str:
    """The back end to draw with: what ``MUJOCO_GL`` says, else the first whose library is there.

    Raises:
        MissingExtraError: If there is none.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in BACK_ENDS:
        return chosen
    for name, library in BACK_ENDS.items():
        if ctypes.util.find_library(library):
            return name
    raise MissingExtraError(f"no library draws pictures without a window; {INSTALL_GL}")


class Offscreen:
    """Draws one simulation, with its visual geometry only and without reflections (those cost three quarters of the time).

    Attributes:
        model: A ``mujoco.MjModel``.
        size: Largest height and width of a picture, pixels.

    Raises:
        MissingExtraError: If no OpenGL context can be had.
    """

    def __init__(self, model: Any, size: int) -> None:
        self._mujoco = require("mujoco", "robosuite")
        self.model, self.size = model, size
        self._gl = _context(size)
        self._gl.make_current()
        around = model.vis.global_
        around.offwidth, around.offheight = max(around.offwidth, size), max(around.offheight, size)
        self._scene = self._mujoco.MjvScene(model, maxgeom=10_000)
        self._scene.flags[self._mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._options = self._mujoco.MjvOption()
        self._options.geomgroup[0] = 0
        self._context = self._mujoco.MjrContext(model, self._mujoco.mjtFontScale.mjFONTSCALE_100)
        self._mujoco.mjr_setBuffer(self._mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def picture(self, data: Any, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        """What a camera sees, ``(size, size, 3)``, the top row first.

        Args:
            data: The ``mujoco.MjData`` to draw.
            camera: Name of the camera.
            size: Height and width in pixels; None for the largest.
        """
        mujoco, side = self._mujoco, size or self.size
        view = mujoco.MjvCamera()
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self.model.camera(camera).id
        self._gl.make_current()
        mujoco.mjv_updateScene(self.model, data, self._options, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        window = mujoco.MjrRect(0, 0, side, side)
        mujoco.mjr_render(window, self._scene, self._context)
        pixels = np.empty((side, side, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, window, self._context)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Free the context; closing twice is harmless."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def _context(size: int) -> Any:
    back_end = gl_back_end()
    try:
        return importlib.import_module(f"mujoco.{back_end}").GLContext(size, size)
    except Exception as error:  # PyOpenGL raises AttributeError, ImportError, RuntimeError or its own, by platform and version
        raise MissingExtraError(f"the {back_end} back end cannot draw ({type(error).__name__}: {error}); {INSTALL_GL}") from error
