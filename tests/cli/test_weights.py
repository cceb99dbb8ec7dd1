"""Which checkpoint a command means."""

import json
from pathlib import Path

import pytest

from flowrl.cli.weights import find_checkpoint
from flowrl.errors import CheckpointError


def checkpoint(run: Path, update: int) -> Path:
    folder = run / "checkpoints" / f"update_{update:06d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"update": update, "files": {}}), encoding="utf-8")
    return folder


def test_a_checkpoint_that_was_not_kept_is_refused_with_those_that_were(tmp_path):
    for update in (20, 30, 40):
        checkpoint(tmp_path, update)
    told = "holds no update_000010, only update_000020, update_000030 and update_000040; give one of these"
    with pytest.raises(CheckpointError, match=told):
        find_checkpoint(tmp_path, "10")
    assert find_checkpoint(tmp_path, "30").name == "update_000030"


def test_without_any_checkpoint_a_number_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint; give a run's folder as the source"):
        find_checkpoint(tmp_path, "10")
