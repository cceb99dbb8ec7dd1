"""``flowrl rollout`` on the closed-form toy."""

import json
import signal
import subprocess
import sys
import time

import pytest

from flowrl.cli.main import main

CONFIG = "smoke/robot_rollout_toy"


def rollout(tmp_path, *arguments, name="run"):
    return main(["--traceback", "rollout", CONFIG, f"run_dir={tmp_path / name}", "videos=0", *arguments])


def seeds_of(folder):
    return sorted(json.loads(line)["seed"] for line in (folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines())


def test_the_command_prints_the_outcome_and_where_everything_is(tmp_path, capsys):
    assert rollout(tmp_path, "--seeds", "10:30", "policy.bias=0.0") == 0
    printed = capsys.readouterr().out
    arm = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))["arms"][0]
    assert seeds_of(tmp_path / "run") == list(range(10, 30))
    low, high = (100 * end for end in arm["wilson_95"])
    for text in (f"{arm['successes']}/20", f"{arm['success_rate']:.1%}", f"{low:.1f} – {high:.1f}", "toy: 20 episodes in"):
        assert text in printed
    assert f"report   {tmp_path / 'run/report.html'}" in printed
    assert "crashed" not in printed
    assert "<span>seeds</span>10 to 29" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "seeds: '10:30'" in (tmp_path / "run/config.yaml").read_text(encoding="utf-8")


def test_the_seeds_of_the_config_hold_where_none_are_given(tmp_path):
    assert main(["--traceback", "rollout", CONFIG, f"run_dir={tmp_path / 'run'}"]) == 0
    assert seeds_of(tmp_path / "run") == list(range(8))
    assert len(list((tmp_path / "run/videos").glob("*.mp4"))) == 1


def test_a_run_goes_on_and_is_compared(tmp_path, capsys):
    rollout(tmp_path, "--seeds", "0:10")
    assert main(["rollout", CONFIG, f"run_dir={tmp_path / 'run'}", "--seeds", "0:12"]) == 2
    assert "already holds a rollout; go on with --resume" in capsys.readouterr().err
    assert rollout(tmp_path, "--seeds", "0:12", "--resume") == 0
    assert seeds_of(tmp_path / "run") == list(range(12))
    capsys.readouterr()
    assert rollout(tmp_path, "--seeds", "0:12", "policy.bias=5.0", "--against", str(tmp_path / "run"), name="other") == 0
    printed = capsys.readouterr().out
    successes = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))["arms"][0]["successes"]
    assert f"policy − run on 12 common seeds: {-100 * successes / 12:+.1f} points" in printed
    assert f"only policy 0, only run {successes}" in printed


def test_a_config_of_something_else_is_refused(capsys):
    assert main(["rollout", "smoke/digits_g2rpo"]) == 2
    assert "describes a RLTrainer, not a robot.evaluation.Rollout" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_keeps_the_finished_episodes_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "flowrl.cli.main", "rollout", CONFIG, f"run_dir={folder}", "videos=0", "rows=1", "workers=1"]
    # A shell that starts the tests in its background has them, and all they start, ignore SIGINT.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*command, "--seeds", "0:100000"], preexec_fn=heed, **pipes) as process:  # noqa: PLW1509 - no threads yet
        try:
            deadline = time.monotonic() + 120
            while not (folder / "episodes.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    done = seeds_of(folder)
    assert process.returncode == 130
    assert f"flowrl rollout {CONFIG} run_dir={folder} videos=0 rows=1 workers=1 --seeds 0:100000 --resume" in printed
    assert done == list(range(len(done)))
    assert rollout(tmp_path, "rows=1", "--seeds", f"0:{len(done) + 3}", "--resume") == 0
    assert seeds_of(folder) == list(range(len(done) + 3))


SPEC = "{target: robot.ActionSpec, names: [x], control_rate_hz: 10.0}"


def test_pickled_checkpoints_are_trusted_only_with_the_flag(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(
        "target: robot.evaluation.Rollout\nseeds: '0:1'\nrun_dir: runs/x\nenv: {target: robot.envs.Toy}\n"
        f"policy: {{target: robot.adapters.DiffusionPolicyCheckpoint, path: {tmp_path / 'missing.ckpt'}, action: {SPEC}}}\n",
        encoding="utf-8",
    )
    from argparse import Namespace

    from flowrl.cli.console import load_robot_job

    told = {
        flag: load_robot_job(Namespace(config=config, overrides=[], trust_checkpoint=flag)).policy.trust_checkpoint
        for flag in (False, True)
    }
    assert told == {False: False, True: True}


def test_flowrl_report_says_where_the_page_of_a_rollout_is(tmp_path, capsys):
    assert main(["rollout", "smoke/robot_rollout_toy", f"run_dir={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 2
    assert f"the page is {tmp_path / 'run' / 'report.html'}" in capsys.readouterr().err
