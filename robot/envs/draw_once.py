"""Draw one tiny picture with MuJoCo; run in a process of its own, because a back end that fails may take the process with it.

Usage: python -P draw_once.py egl
"""

from __future__ import annotations

import importlib
import sys

SIZE = 16
SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="above" pos="0 0 1"/>
    <geom type="box" size=".1 .1 .1" rgba="1 0 0 1" group="1"/>
  </worldbody>
</mujoco>
"""


def main(back_end: str) -> int:
    """Draw a red box on a black ground.

    Returns:
        0 if the picture shows it, 1 if it shows nothing.
    """
    import mujoco
    import numpy as np

    context = importlib.import_module(f"mujoco.{back_end}").GLContext(SIZE, SIZE)
    context.make_current()
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    scene, target = mujoco.MjvScene(model, maxgeom=10), mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, target)
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
    window, pixels = mujoco.MjrRect(0, 0, SIZE, SIZE), np.zeros((SIZE, SIZE, 3), np.uint8)
    mujoco.mjr_render(window, scene, target)
    mujoco.mjr_readPixels(pixels, None, window, target)
    red, green, _ = pixels[SIZE // 2, SIZE // 2]
    return int(red <= green)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
