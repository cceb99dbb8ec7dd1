import sys

import numpy as np
import pytest

from flowrl.errors import MissingExtraError
from robot.envs import check, needs, offscreen

WORKS = None


@pytest.fixture
def back_ends(monkeypatch):
    """Pretend which libraries are there and which back ends draw."""

    def pretend(chosen=None, libraries=(), **failures):
        if chosen is None:
            monkeypatch.delenv("MUJOCO_GL", raising=False)
        else:
            monkeypatch.setenv("MUJOCO_GL", chosen)
        monkeypatch.setattr(offscreen.ctypes.util, "find_library", lambda name: name if name in libraries else None)
        monkeypatch.setattr(check, "drawing_problem", failures.get)

    return pretend


def test_a_back_end_that_draws_is_no_problem(back_ends):
    back_ends(libraries=("EGL",), egl=WORKS, osmesa="no library")
    assert check.gl_problems() == []
    back_ends(chosen="osmesa", egl="no device", osmesa=WORKS)
    assert check.gl_problems() == []


def test_the_other_back_end_is_the_remedy_where_it_works(back_ends):
    back_ends(libraries=("EGL", "OSMesa"), egl="no device", osmesa=WORKS)
    assert check.gl_problems() == ["MuJoCo cannot draw with egl (no device); set MUJOCO_GL=osmesa, which works here"]
    back_ends(chosen="osmesa", libraries=("EGL",), egl=WORKS, osmesa="no glGetError")
    assert check.gl_problems() == ["MuJoCo cannot draw with osmesa (no glGetError); set MUJOCO_GL=egl, which works here"]


def test_the_packages_to_install_are_the_remedy_where_none_works(back_ends):
    back_ends(libraries=("EGL",), egl="no device", osmesa="no library")
    assert check.gl_problems() == [f"MuJoCo cannot draw with egl (no device); {offscreen.INSTALL_GL}"]
    back_ends(egl="x", osmesa="x")
    (problem,) = check.gl_problems()
    assert problem.startswith(
        "no library draws pictures without a window; install the system packages libegl1 and libegl-mesa0, or libosmesa6"
    )


@pytest.mark.parametrize(
    ("chosen", "libraries", "used"), [("osmesa", ("EGL",), "osmesa"), ("glfw", ("EGL",), "egl"), ("", ("OSMesa",), "osmesa")]
)
def test_the_environment_variable_comes_before_what_is_there(back_ends, chosen, libraries, used):
    back_ends(chosen=chosen, libraries=libraries)
    assert offscreen.gl_back_end() == used


def test_a_try_ends_with_the_last_line_of_the_complaint():
    assert check.tried(("-c", "pass")) is None
    assert check.tried(("-c", "raise RuntimeError('no device')")) == "RuntimeError: no device"
    assert check.tried(("-c", "import os; os._exit(139)")) == "exit status 139"
    assert check.tried(("-c", "import time; time.sleep(60)"), patience_s=0.5) == "no answer within 0.5 s"


def test_a_library_that_does_not_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_simulator.py").write_text("raise AssertionError('joint_type')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert check.import_problem("broken_simulator") == "AssertionError: joint_type"
    assert check.import_problem("json") is None


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ("3.3.0", None),
        ("3.9.1", None),
        ("3.10.0", "mujoco 3.10.0 does not work here, it takes >=3.3,<3.10; install it with: pip install 'mujoco>=3.3,<3.10'"),
        ("4.0.0", "mujoco 4.0.0 does not work here, it takes >=3.3,<3.10; install it with: pip install 'mujoco>=3.3,<3.10'"),
        ("3.2.7", "mujoco 3.2.7 does not work here, it takes >=3.3,<3.10; install it with: pip install 'mujoco>=3.3,<3.10'"),
    ],
)
def test_robosuite_takes_the_mujocos_that_it_was_seen_to_work_with(monkeypatch, found, problem):
    monkeypatch.setattr(needs, "find_spec", lambda module: True)
    monkeypatch.setattr(needs, "version", {"mujoco": found, "robosuite": "1.5.2", "gymnasium": "1.4.0"}.__getitem__)
    assert check.extra_problems("robosuite") == ([problem] if problem else [])


def test_an_absent_library_comes_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(check.EXTRAS, "robosuite", (check.Library("no_such_simulator"),))
    assert check.installed("robosuite") is None
    assert check.extra_problems("robosuite") == [
        "no_such_simulator is not installed; install it with: pip install 'flowrl-torch[robosuite]'"
    ]


def test_what_is_installed_is_told_with_versions(monkeypatch):
    monkeypatch.setitem(check.EXTRAS, "robot", (check.Library("numpy"), check.Library("no_such_library")))
    assert check.installed("robot") == f"numpy {np.__version__}"


@pytest.mark.skipif(bool(check.extra_problems("robosuite")), reason="no MuJoCo")
def test_a_real_picture_is_drawn_where_the_check_says_so():
    if problems := check.gl_problems():
        pytest.skip(problems[0])
    import mujoco

    from robot.envs.draw_once import SCENE

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    drawing = offscreen.Offscreen(model, 32)
    small, large = drawing.picture(model, data, "above", 16), drawing.picture(model, data, "above")
    drawing.close()
    drawing.close()
    assert (small.shape, large.shape, small.dtype) == ((16, 16, 3), (32, 32, 3), np.uint8)
    assert large[16, 16, 0] > 1.5 * large[16, 16, 1] > 0
    assert large[0, 0].max() < 10


def test_a_back_end_that_cannot_draw_is_an_error_with_the_remedy(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setitem(sys.modules, "mujoco.osmesa", None)  # as if it failed to import
    model = type("Model", (), {})()
    with pytest.raises(MissingExtraError, match=r"the osmesa back end cannot draw .* libegl1 and libegl-mesa0"):
        offscreen.Offscreen(model, 8)


def test_a_back_end_is_tried_as_itself_whatever_the_environment_says(monkeypatch):
    used = offscreen.gl_back_end() if not check.gl_problems() else pytest.skip("nothing draws here")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "wayland")
    assert check.drawing_problem.__wrapped__(used) is None
