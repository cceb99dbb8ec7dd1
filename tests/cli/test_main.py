"""The command line without training: parsing, errors, configs, report."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from flowrl import __version__
from flowrl.cli import train
from flowrl.cli.main import COMMANDS, main
from flowrl.config import bundled_configs, config_path
from flowrl.errors import RewardError


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^    {name}\s", printed, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"\n  flowrl {name}" in capsys.readouterr().out


def test_help_loads_no_heavy_library():
    probe = "import sys\nfrom flowrl.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    probe += "heavy = {'torch', 'diffusers', 'rich', 'omegaconf', 'PIL'} & set(sys.modules)\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True)


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"flowrl {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "x", "--reusme"], "unrecognized arguments: --reusme"),
        (["train", "x", "--reusme=1"], "unrecognized arguments: --reusme=1"),
        (["report", "run", "extra=1"], "unrecognized arguments: extra=1"),
        (["train"], "required: CONFIG"),
    ],
)
def test_wrong_use_exits_2_and_says_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "image/digits_grpo"], "no config file 'image/digits_grpo', nor a bundled config of that name; did you mean"),
        (["train", "image/digits_g2rpo", "sampler.groupsize=4"], "config.sampler.groupsize: .*did you mean 'group_size'"),
        (["train", "image/digits_g2rpo", "sampler.dynamics.noise_level=-1"], "config.sampler.dynamics: noise_level must be > 0 and finite"),
        (["train", "image/digits_pretrain"], "describes a Pretrain, not a flowrl.train.RLTrainer; run it with flowrl pretrain"),
        (["pretrain", "image/digits_g2rpo"], "describes a RLTrainer, not a flowrl.train.Pretrain; RL runs start with flowrl train"),
        (["report", "nowhere"], "there is no run folder nowhere"),
        (["evaluate", "image/digits_g2rpo", "evaluation=null"], "has no evaluation; add one, with prompts, a sampler and rewards"),
        (["configs", "show", "image/digits_g2rp"], "did you mean 'image/digits_g2rpo'"),
    ],
)
def test_what_a_user_can_mend_is_one_message_without_traceback(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.startswith("flowrl: error: ")
    assert "Traceback" not in error


def test_traceback_shows_where_an_error_came_from():
    with pytest.raises(ValueError, match="there is no run folder nowhere"):
        main(["--traceback", "report", "nowhere"])


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def broken(args):
        raise ZeroDivisionError

    monkeypatch.setattr(COMMANDS["report"], "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["report", "x"])


@pytest.mark.parametrize("group_size", [1, 4])
def test_a_noise_free_sampler_is_refused_for_training_before_the_model_is_loaded(group_size, tmp_path, capsys):
    config = yaml.safe_load(config_path("smoke/digits_g2rpo").read_text(encoding="utf-8"))
    config |= {"sampler": {**config["evaluation"]["sampler"], "group_size": group_size}, "run_dir": str(tmp_path / "run")}
    (tmp_path / "noise_free.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["train", str(tmp_path / "noise_free.yaml")]) == 2
    assert "config: ODESampler draws without noise" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["configs", "copy", "smoke/digits_g2rpo", "{file}/x.yaml"], ["report", "{run}"]])
def test_what_the_system_refuses_is_one_message_that_says_how_to_see_more(arguments, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "run" / "report.html").mkdir(parents=True)  # where the page should go
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "train", "update": 0, "reward": 0.5}\n')
    given = [text.format(file=tmp_path / "file", run=tmp_path / "run") for text in arguments]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert re.match(rf"flowrl: error: \[Errno \d+\] .*{tmp_path}.*; flowrl --traceback {arguments[0]} … shows where\n$", error)
    with pytest.raises(OSError, match="Errno"):
        main(["--traceback", *given])


@pytest.mark.parametrize(
    "arguments", [["c", "a=1", "b.c=2", "--resume"], ["c", "--resume", "a=1", "b.c=2"], ["--resume", "c", "a=1", "b.c=2"]]
)
def test_overrides_may_stand_before_or_after_options(arguments, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "run", lambda args: seen.append((args.config, args.overrides, args.resume)) or 0)
    assert main(["train", *arguments]) == 0
    assert seen == [("c", ["a=1", "b.c=2"], True)]


def test_a_second_command_does_not_inherit_overrides(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "run", lambda args: seen.append(args.overrides) or 0)
    main(["train", "c", "--resume", "a=1"])
    main(["train", "c"])
    assert seen == [["a=1"], []]


def trainer_that(raises):
    def run(*, resume):
        raise raises

    return SimpleNamespace(run=run)


def test_ctrl_c_exits_130_and_shows_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr("flowrl.cli.console.load_component", lambda *_: (trainer_that(KeyboardInterrupt()), None))
    assert main(["train", "my config.yaml", "run_dir=a b"]) == 130
    assert "Go on with: flowrl train 'my config.yaml' 'run_dir=a b' --resume" in capsys.readouterr().out


def test_only_the_first_of_several_processes_shows_how_to_go_on(monkeypatch, capsys):
    monkeypatch.setattr("flowrl.cli.console.load_component", lambda *_: (trainer_that(KeyboardInterrupt()), None))
    for rank, expected in (("0", "the same command with --resume"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(["train", "c"]) == 130
        printed = capsys.readouterr().out
        assert expected in printed
        assert bool(printed) == (rank == "0")


def stopped_run(folder, lines):
    """A job that writes lines of metrics, and then has no reward any more."""

    def run(*, resume):
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps({"kind": "train", "update": update, "reward": 0.5}) + "\n" for update in range(lines))
        raise RewardError("the server is gone")

    return SimpleNamespace(run=run, folder=folder)


def test_a_run_that_an_error_ends_leaves_a_report_and_says_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flowrl.cli.console.load_component", lambda *_: (stopped_run(tmp_path, 2), None))
    for rank, expected in (("1", ""), ("0", f"report       {tmp_path / 'report.html'}\n")):
        monkeypatch.setenv("RANK", rank)
        assert main(["train", "c"]) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == (expected, "flowrl: error: the server is gone\n")
        assert (tmp_path / "report.html").exists() == (rank == "0")


def test_a_run_that_an_error_ends_before_it_wrote_anything_leaves_the_folder_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "train", "update": 0, "reward": 0.5}) + "\n")
    monkeypatch.setattr("flowrl.cli.console.load_component", lambda *_: (stopped_run(tmp_path, 0), None))
    assert main(["train", "c"]) == 2
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_cannot_be_written_does_not_hide_why_the_run_ended(tmp_path, monkeypatch, capsys):
    (tmp_path / "report.html").mkdir()
    monkeypatch.setattr("flowrl.cli.console.load_component", lambda *_: (stopped_run(tmp_path, 2), None))
    assert main(["train", "c"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "flowrl: error: the server is gone\n"
    assert printed.out.startswith("report       could not be written: ")


def test_ctrl_c_elsewhere_exits_130_too(monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS["report"], "run", interrupted)
    assert main(["report", "x"]) == 130


def test_configs_are_listed_with_their_purpose(capsys):
    assert main(["configs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == bundled_configs()
    assert all(len(line.split()) > 3 for line in lines)


def test_a_config_s_purpose_is_one_whole_sentence(capsys):
    assert main(["configs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.endswith((".", "?")) or line.endswith(("..", "?."))] == []
    assert [line for line in lines if re.search(r"[.?] |Command|, then\\.$", line)] == []
    purposes = dict(line.split(maxsplit=1) for line in lines)
    assert purposes["image/flux1_dancegrpo"].endswith("trained, groups of 12 from the same noise, 16 prompts an update on 16 GPUs.")
    assert purposes["robot/bc_lift_flow"] == "A flow policy for Lift from the state: first flowrl record robot/record_lift (2 minutes)."


def test_configs_are_filtered_by_a_part_of_their_names(capsys):
    assert main(["configs", "list", "image"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [name for name in bundled_configs() if "image" in name]
    assert main(["configs", "list", "nothing"]) == 2
    assert "no bundled config has 'nothing' in its name; flowrl configs list shows all, in image," in capsys.readouterr().err


def test_names_stand_one_a_line_where_none_is_close(capsys):
    assert main(["configs", "show", "qqq"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("nor a bundled config of that name; the bundled ones are")
    assert [line.strip() for line in lines[1:]] == bundled_configs()


def test_a_config_is_shown_as_it_is(capsys):
    assert main(["configs", "show", "image/digits_g2rpo"]) == 0
    assert capsys.readouterr().out == config_path("image/digits_g2rpo").read_text(encoding="utf-8")


def test_a_config_is_copied_and_nothing_is_overwritten(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "copy", "image/digits_g2rpo"]) == 0
    assert main(["configs", "copy", "image/digits_g2rpo", "deep/mine.yaml"]) == 0
    source = config_path("image/digits_g2rpo").read_bytes()
    assert [(tmp_path / name).read_bytes() for name in ("digits_g2rpo.yaml", "deep/mine.yaml")] == [source, source]
    (tmp_path / "digits_g2rpo.yaml").write_text("mine")
    assert main(["configs", "copy", "image/digits_g2rpo"]) == 2
    assert "digits_g2rpo.yaml exists already" in capsys.readouterr().err
    assert (tmp_path / "digits_g2rpo.yaml").read_text() == "mine"


def test_the_report_of_a_run_is_written_and_its_path_printed(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "train", "update": 0, "reward": 0.5}) + "\n")
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
