"""Relative files of a config are found from other working directories; where one is there, nothing changes."""

import pytest
import yaml

from flowrl.config import load_config
from flowrl.train.prompts import load_prompts

CONTENT = {"prompts": "mine.txt", "evaluation": {"prompts": "mine.txt"}, "model": {"path": "weights/tiny"}, "run_dir": "runs/one"}


@pytest.fixture
def project(tmp_path):
    """A folder with data, a config, and the folder of a run that was started there."""
    folder = tmp_path / "project"
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "weights" / "tiny").mkdir(parents=True)
    (folder / "mine.txt").write_text("a red fox\n", encoding="utf-8")
    for path in (folder / "mine.yaml", folder / "runs" / "one" / "config.yaml"):
        path.write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    return folder


@pytest.mark.parametrize("config", ["mine.yaml", "runs/one/config.yaml"])
def test_files_beside_a_config_and_where_a_run_was_started_are_found_from_elsewhere(project, config, monkeypatch):
    monkeypatch.chdir(project.parent / "elsewhere")
    found = load_config(project / config)
    assert found["prompts"] == found["evaluation"]["prompts"] == str(project / "mine.txt")
    assert found["model"]["path"] == str(project / "weights" / "tiny")
    assert load_prompts(found["prompts"]) == ["a red fox"]


def test_what_lies_in_the_working_directory_is_recorded_as_it_is_written(project, monkeypatch):
    monkeypatch.chdir(project)
    assert load_config("mine.yaml") == load_config("runs/one/config.yaml") == CONTENT


def test_the_working_directorys_file_goes_before_that_beside_the_config(project, monkeypatch):
    elsewhere = project.parent / "elsewhere"
    (elsewhere / "mine.txt").write_text("another\n", encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    assert load_config(project / "mine.yaml")["prompts"] == "mine.txt"


def test_hub_ids_bundled_files_and_prompts_themselves_stay(project, monkeypatch):
    monkeypatch.chdir(project.parent / "elsewhere")
    content = CONTENT | {"prompts": "assets/prompts/digits.txt", "evaluation": {"prompts": ["mine.txt"]}, "model": {"path": "owner/name"}}
    (project / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert load_config(project / "mine.yaml") == content


def test_a_run_folder_of_another_name_tells_nothing_of_where_it_was_started(project, monkeypatch):
    monkeypatch.chdir(project.parent / "elsewhere")
    (project / "runs" / "one").rename(project / "runs" / "two")
    assert load_config(project / "runs" / "two" / "config.yaml")["prompts"] == "mine.txt"


def test_a_file_that_is_nowhere_is_refused_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"prompt file mine.txt: No such file or directory in {tmp_path}, nor beside the config"):
        load_prompts("mine.txt")
