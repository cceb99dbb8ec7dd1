"""``flowrl serve-reward`` and ``flowrl train`` as a user starts them: two processes, one address."""

import json
import signal
import subprocess
import sys

import httpx
import pytest
from serving import free_port

from flowrl.cli.main import main


@pytest.fixture
def serve(tmp_path):
    """Start the command; what ends with the test is killed."""
    started = []

    def serve(*arguments):
        with (tmp_path / "server.txt").open("w") as output:
            command = [sys.executable, "-W", "error", "-m", "flowrl.cli.main", "serve-reward", *arguments]
            started.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
        return started[-1]

    yield serve
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_server_started_by_command_serves_a_run_started_by_command_and_ends_on_ctrl_c(serve, tmp_path, capsys):
    url = f"http://127.0.0.1:{(port := free_port())}"
    process = serve("rewards/serve_digits", f"port={port}")
    places = [f"reward.servers=[{url!r}]", f"evaluation.rewards.0.servers=[{url!r}]", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", "rewards/digits_remote", *places, "updates=2", "evaluate_every=2", "trackers=[]"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["groups_dropped"] for line in lines if line["kind"] == "train"] == [0, 0]
    assert all(-10 < line["reward/legibility"] < 0 for line in lines if line["kind"] == "train")
    load = httpx.get(f"{url}/health").json()["load"]
    assert (load["rows_missing"], load["rows_failed"]) == (0, 0)
    assert load["rows"] > 0
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    output = (tmp_path / "server.txt").read_text()
    assert f"ready: legibility, heldout_probability, heldout_accuracy on {url}" in output
    assert output.endswith("ended; every request under way was answered\n")


def test_a_server_that_cannot_start_says_why_and_ends_with_status_2(capsys):
    assert main(["serve-reward", "rewards/serve_digits", "host=0.0.0.0", f"port={free_port()}"]) == 2
    assert "which needs a token: export FLOWRL_REWARD_TOKEN=" in capsys.readouterr().err


def test_a_run_without_its_server_ends_before_the_model_is_loaded(tmp_path, capsys):
    places = [f"reward.servers=['http://127.0.0.1:{free_port()}']", "reward.start_within_s=0", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", "rewards/digits_remote", *places, "model.path=there/is/no/model"]) == 2
    assert "flowrl: error: reward server http://127.0.0.1" in capsys.readouterr().err
