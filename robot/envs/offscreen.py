"""Pictures of a MuJoCo simulation without a window."""

from __future__ import annotations

import ctypes.util
import importlib
import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from flowrl.errors import MissingExtraError, require

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BACK_ENDS", "INSTALL_GL", "Offscreen", "gl_back_end", "shared_offscreen"]

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
    """Draws simulations of one model, with their visual geometry only and without reflections (which take three quarters of the time).

    Its memory (some 200 MB, most of it textures) is freed once nobody refers to it.

    Attributes:
        size: Largest height and width of a picture, pixels.

    Args:
        model: A ``mujoco.MjModel``.
        size: Largest height and width of a picture, pixels.

    Raises:
        MissingExtraError: If no OpenGL context can be had.
    """

    def __init__(self, model: Any, size: int) -> None:
        mujoco = self._mujoco = require("mujoco", "robosuite")
        self.size = size
        self._gl = _context(size)
        self._gl.make_current()
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0
        self._target = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._target)
        self._free = weakref.finalize(self, _free, self._gl, self._target)
        self._free.atexit = False  # by then the back end has shut itself down

    def picture(self, model: Any, data: Any, camera: str, size: int | None = None) -> NDArray[np.uint8]:
        """What a camera sees, ``(size, size, 3)``, the top row first.

        Args:
            model: The ``mujoco.MjModel`` of the simulation; the one that this was made with, or one with the same geometry and textures.
            data: Its ``mujoco.MjData``.
            camera: Name of the camera.
            size: Height and width in pixels; None for the largest.
        """
        mujoco, side = self._mujoco, size or self.size
        view = mujoco.MjvCamera()
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(camera).id
        self._gl.make_current()
        mujoco.mjv_updateScene(model, data, self._options, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        window = mujoco.MjrRect(0, 0, side, side)
        mujoco.mjr_render(window, self._scene, self._target)
        pixels = np.empty((side, side, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, window, self._target)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Free it now; closing twice is harmless."""
        self._free()


_shared: weakref.WeakValueDictionary[tuple[str, int], Offscreen] = weakref.WeakValueDictionary()


def shared_offscreen(name: str, model: Any, size: int) -> Offscreen:
    """One for all environments of this process that have the same model, because each would take its own memory.

    Args:
        name: Of the model; equal names promise the same geometry and textures.
        model: A ``mujoco.MjModel``.
        size: Largest height and width of a picture, pixels.

    Raises:
        MissingExtraError: If no OpenGL context can be had.
    """
    found = _shared.get((name, size))
    if found is None:
        found = _shared[name, size] = Offscreen(model, size)
    return found


def _free(gl: Any, target: Any) -> None:
    gl.make_current()
    target.free()
    gl.free()


def _context(size: int) -> Any:
    back_end = gl_back_end()
    try:
        return importlib.import_module(f"mujoco.{back_end}").GLContext(size, size)
    except Exception as error:  # PyOpenGL raises AttributeError, ImportError, RuntimeError or its own, by platform and version
        raise MissingExtraError(f"the {back_end} back end cannot draw ({type(error).__name__}: {error}); {INSTALL_GL}") from error
