"""Who may import whom: the contracts hold, and each of them refuses what it is there to refuse."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("flowrl", "samplers", "rewards", "robot")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path):
    """A copy of the source of the four packages, to plant imports in."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_import_contracts_hold():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        ("flowrl/flow/planted.py", "import flowrl.rl.planted", "Imports only point down"),
        ("flowrl/rl/planted.py", "import flowrl.train.planted", "Imports only point down"),
        ("samplers/planted.py", "import rewards.planted", "Imports only point down"),
        ("rewards/planted.py", "import flowrl.cli.planted", "Imports only point down"),
        (
            "flowrl/train/planted.py",
            "def run() -> None:\n    import samplers.planted",
            "Only the command line names samplers, rewards and robot",
        ),
        ("flowrl/planted.py", "", "Every module of flowrl is named in the layers"),
    ],
)
def test_a_planted_import_breaks_the_contract_that_forbids_it(tree, module, planted, contract):
    for folder in ("flowrl/rl", "flowrl/train", "flowrl/cli", "samplers", "rewards"):
        (tree / folder / "planted.py").touch()
    (tree / module).write_text(planted)
    done = lint_imports(tree)
    assert done.returncode == 1, done.stdout
    assert f"{contract} BROKEN" in done.stdout


def test_the_contract_about_siblings_covers_every_layer_below_the_command_line():
    contracts = {c["id"]: c for c in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]}
    layers = [layer.strip("()") for layer in contracts["layers"]["layers"]]
    core = [layer for layer in layers if layer.startswith("flowrl.") and layer != "flowrl.cli"]
    assert contracts["core-names-no-sibling"]["source_modules"] == core
