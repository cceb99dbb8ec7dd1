"""What the README shows is true."""

import re
from pathlib import Path

import pytest
import torch

from flowrl.cli.main import main
from flowrl.config import config_path

README = Path(__file__).parents[1] / "README.md"
PAGES = sorted((README.parent / "docs").glob("*.md"))


def _blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_library_examples_run_and_give_the_pictures_they_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in _blocks("python"):
        exec(compile(block, str(README), "exec"), names)
    assert (tmp_path / "runs" / "dark" / "checkpoints" / "update_000002").is_dir()
    assert names["pictures"].shape == (8, 3, 16, 16)
    assert names["trajectory"].network_evaluations == names["sampler"].evaluations()
    assert bool(((names["pictures"] >= 0) & (names["pictures"] <= 1)).all())
    assert torch.unique(names["pictures"].flatten(1), dim=0).shape[0] == 8, "branches differ by their own noise"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"configs/[\w/]+\.yaml", README.read_text(encoding="utf-8")))))
def test_every_config_that_it_names_is_there(name):
    assert config_path(README.parent / name).is_file()


@pytest.mark.parametrize(
    "command", sorted({line.split()[1] for block in _blocks("bash") for line in block.splitlines() if line.startswith("flowrl ")})
)
def test_every_command_that_it_names_explains_itself(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"flowrl {command}" in capsys.readouterr().out


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_pictures_and_pages_that_it_links_are_there(page):
    links = [link for link in re.findall(r"\]\((.*?)\)", page.read_text(encoding="utf-8")) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (page.parent / link.split("#")[0]).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in _blocks("python", page):
        exec(compile(block, str(page), "exec"), names)
    assert names


def test_the_config_of_the_guide_to_models_trains(monkeypatch, tmp_path):
    """The page as a user follows it: the adapter in a file, the small pipeline in a folder, the YAML beside them."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    page = README.parent / "docs" / "add_a_model.md"
    adapter, pipeline, *_ = _blocks("python", page)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "auraflow.py").write_text(adapter, encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("red square\ngreen circle\n", encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(_blocks("yaml", page)[0], encoding="utf-8")
    exec(compile(pipeline, str(page), "exec"), {})
    try:
        assert main(["train", "tiny.yaml", "trackers=[]"]) == 0
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    assert (tmp_path / "runs" / "auraflow" / "checkpoints" / "update_000004").is_dir()
