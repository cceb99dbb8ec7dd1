"""What a user gets from pip: built once, installed into an empty folder, used from another empty folder."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)], check=True)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Run Python in an empty folder, with the installed wheel before this clone on the path; returns what it printed, as JSON."""

    def run(code: str, *arguments: str) -> object:
        env = os.environ | {"PYTHONPATH": str(installed)}
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def below(folder: str, pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob(pattern) if path.is_file())


def test_the_wheel_holds_exactly_the_four_packages_and_its_metadata(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert names == {"flowrl", "samplers", "rewards", "robot", "flowrl_torch-0.1.0.dist-info"}


def test_the_wheel_holds_every_config_and_every_asset_of_the_clone(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"flowrl/configs/{name}" for name in below("configs", "*.yaml")} <= names
    assert {f"flowrl/assets/{name}" for name in below("assets", "*") if not name.startswith(".")} <= names


def test_the_wheel_carries_its_licence_its_type_marker_and_its_command(wheel):
    archive = zipfile.ZipFile(wheel)
    assert {"flowrl_torch-0.1.0.dist-info/licenses/LICENSE", "flowrl/py.typed"} <= set(archive.namelist())
    assert "flowrl = flowrl.cli.main:main" in archive.read("flowrl_torch-0.1.0.dist-info/entry_points.txt").decode()


def test_the_four_packages_are_imported_from_the_wheel_and_are_ours(run, installed):
    code = """
import json, flowrl, samplers, rewards, robot
print(json.dumps([[module.__file__, module.OWNER] for module in (flowrl, samplers, rewards, robot)]))
"""
    expected = [[str(installed / name / "__init__.py"), "flowrl"] for name in ("flowrl", "samplers", "rewards", "robot")]
    assert run(code) == expected


def test_every_bundled_config_is_found_and_builds_from_an_empty_folder(run):
    code = """
import json
from flowrl.config import bundled_configs, load_config, validate
print(json.dumps({name: validate(load_config(name)) for name in bundled_configs()}))
"""
    expected = {name.removesuffix(".yaml"): [] for name in below("configs", "*.yaml") if not name.startswith("accelerate/")}
    assert expected
    assert run(code) == expected


def test_every_asset_is_found_from_an_empty_folder(run, installed):
    names = below("assets", "*")
    assert names
    code = "import json, sys; from flowrl.config import asset_path; print(json.dumps([str(asset_path(name)) for name in sys.argv[1:]]))"
    assert run(code, *names) == [str(installed / "flowrl" / "assets" / name) for name in names]


def test_the_suite_of_the_core_passes_on_the_installed_wheel(run):
    code = """
import json, sys, pytest, flowrl
options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", "-c", sys.argv[1]]
with open("output", "w") as sys.stdout:
    status = pytest.main([*options, *sys.argv[2:]])
sys.stdout = sys.__stdout__
assert status == 0, open("output").read()
print(json.dumps(flowrl.__file__))
"""
    tests = [str(ROOT / "tests" / name) for name in ("test_config.py", "flow", "rl", "samplers", "rewards")]
    assert not Path(str(run(code, str(ROOT / "pyproject.toml"), *tests))).is_relative_to(ROOT)
