"""Behaviour cloning as a run: resumed bit for bit, refused where it would go wrong, and what it leaves."""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from demos import SPEC, Given, episode, job, numbered
from safetensors.torch import load_file

from flowrl.errors import CheckpointError, ConfigError, NonFiniteError
from flowrl.train import AdamW
from flowrl.train.checkpoint import check_complete
from flowrl.train.metrics import MetricsLog, read_metrics
from robot.demonstrations import Demonstrations
from robot.learning import Diffusion, ImageEncoder, PolicyFile, StateEncoder, TwoWays, load_policy, read_training
from robot.learning.session import Session


@pytest.fixture(autouse=True)
def _no_picture(request, monkeypatch):
    """Drawing takes longer than training here."""
    if "curve" not in request.node.name:
        monkeypatch.setattr("robot.learning.report.write_curve", lambda record, curves: None)


def lines(run: Path) -> list[dict[str, object]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_metrics(run / "metrics.jsonl")]


def assert_same_run(one: Path, other: Path, steps: int) -> None:
    """Every logged number, the policy's bytes, the trained weights and the optimiser's state agree exactly."""
    assert lines(one) == lines(other)
    folders = [run / "checkpoints" / f"update_{steps:06d}" for run in (one, other)]
    weights = [load_file(folder / "state" / "model.safetensors") for folder in folders]
    policies = [load_file(run / "policy.safetensors") for run in (one, other)]
    for mine, theirs in (weights, policies):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    moments = [torch.load(folder / "state" / "optimizer.bin")["state"] for folder in folders]
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[0])


def in_a_child(work) -> int:
    """Run in a forked process; the signal that ended it, or its exit status, negative."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking beside threads
        child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
    sys.stderr = sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the child ends here
    status = 1
    try:
        work()
        status = 0
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)


def signal_at(monkeypatch, number, count):
    """The process gets a signal when it has written so many lines of metrics."""
    write, written = MetricsLog.write, []

    def writing(self, line):
        write(self, line)
        written.append(line)
        if len(written) == count:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(MetricsLog, "write", writing)


CROPPED = ImageEncoder(cameras=("picture",), channels=(4, 4), points=2, width=8, crop=12)


@pytest.mark.parametrize(
    ("at", "fields"),
    [(1, {}), (4, {}), (3, {"encoder": CROPPED, "process": Diffusion(), "ema_decay": None})],
    ids=["before any checkpoint", "after the last step", "crops, diffusion"],
)
def test_a_run_that_is_killed_and_resumed_ends_bit_for_bit_like_one_that_is_not(fields, at, tmp_path, monkeypatch):
    job(tmp_path / "whole", name="p", **fields).run()
    with monkeypatch.context() as patched:
        signal_at(patched, signal.SIGKILL, at)
        assert in_a_child(lambda: job(tmp_path / "killed", name="p", **fields).run()) == signal.SIGKILL
    job(tmp_path / "killed", name="p", **fields).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed", 6)


def test_the_mean_of_losses_since_the_last_line_survives_a_checkpoint_between_two_lines(tmp_path):
    fields = {"log_every": 3, "checkpoint_every": 2, "steps": 6, "optimizer": AdamW(lr=1e-3), "name": "p"}
    job(tmp_path / "whole", **fields).run()
    first = job(tmp_path / "parts", **fields)
    assert in_a_child(lambda: stop_after(first, 2)) == -130
    assert not (tmp_path / "parts" / "metrics.jsonl").exists()
    job(tmp_path / "parts", **fields).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 6)


def stop_after(made, steps):
    """As if the user had pressed Ctrl-C after so many steps."""
    session = Session(made, resume=False)
    step = session._step

    def stepping():
        loss = step()
        if session.progress.step == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    session._step = stepping
    session.loop()


def test_ctrl_c_leaves_a_checkpoint_of_exactly_the_steps_done(tmp_path):
    assert in_a_child(lambda: stop_after(job(tmp_path / "run", checkpoint_every=100, name="p"), 5)) == -130
    newest = tmp_path / "run" / "checkpoints" / "update_000005"
    assert check_complete(newest) == 5
    assert read_training(newest)["steps"] == 5
    job(tmp_path / "run", checkpoint_every=100, name="p").run(resume=True)
    job(tmp_path / "whole", checkpoint_every=100, name="p").run()
    assert_same_run(tmp_path / "whole", tmp_path / "run", 6)


def test_a_finished_run_goes_on_with_more_steps_and_is_not_overwritten(tmp_path):
    job(tmp_path / "run").run()
    with pytest.raises(ConfigError, match="already holds a run; go on with --resume, or choose another run_dir"):
        job(tmp_path / "run").run()
    assert job(tmp_path / "run", steps=8).run(resume=True).updates == 8
    assert [line["update"] for line in lines(tmp_path / "run") if line["kind"] == "train"] == [1, 3, 5, 7]
    assert [line["update"] for line in lines(tmp_path / "run") if line["kind"] == "eval"] == [3, 6, 8]


def test_a_checkpoint_of_another_configuration_or_of_other_data_is_refused(tmp_path):
    job(tmp_path / "run").run()
    with pytest.raises(CheckpointError, match=r"another configuration.*batch_size: 8 -> 4"):
        job(tmp_path / "run", batch_size=4, steps=8).run(resume=True)
    with pytest.raises(CheckpointError, match=r"was trained on other demonstrations \(sha256 .* instead of .*put them back"):
        job(tmp_path / "run", demonstrations=TwoWays(episodes=24, seed=1), steps=8).run(resume=True)
    newest = tmp_path / "run" / "checkpoints" / "update_000006"
    (newest / "state" / "model.safetensors").write_bytes(b"")
    (newest.parent / "update_000004" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no complete checkpoint to go on from"):
        job(tmp_path / "run", steps=8).run(resume=True)


def test_a_run_leaves_a_policy_with_its_origin_a_curve_and_a_page(tmp_path):
    made = job(tmp_path / "run", name="two ways")
    summary = made.run()
    assert (summary.checkpoint, summary.updates, summary.is_main) == (tmp_path / "run" / "policy.safetensors", 6, True)
    training = read_training(summary.run_dir)
    data = TwoWays(episodes=24).load()
    assert training["data"] == {"sha256": data.sha256(), "episodes": 24, "held_out": 2, "steps": 96, "env": {"env_name": "TwoWays"}}
    assert (training["steps"], training["config"]["batch_size"]) == (6, 8)
    policy = PolicyFile(path=str(summary.run_dir), data_sha256=data.sha256()).load()
    assert (policy.name, policy.horizon, policy.execute, policy.first, policy.sensors) == ("two ways", 4, 2, 0, ("state",))
    assert (summary.run_dir / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    page = summary.report.read_text(encoding="utf-8")
    assert all(
        text in page for text in ("Finished: 6 steps", "24", "2 held out", data.sha256()[:12], "ActionMLP", "Action error", "</html>")
    )
    assert "http" not in page.replace("http://www.w3.org", "")
    last = [line for line in lines(summary.run_dir) if line["kind"] == "eval"][-1]
    assert summary.lines()[0].split()[:2] == ["loss", f"{last['eval/loss']:.4g}"]


def test_the_saved_policy_is_the_average_and_the_state_goes_on_from_the_trained_weights(tmp_path):
    """With decay warming up as 0, 2/11, 3/12 over three steps the average follows by hand from the trained weights of each step."""
    job(tmp_path / "run", steps=3, checkpoint_every=1, keep_checkpoints=3, ema_decay=0.9).run()
    folders = [tmp_path / "run" / "checkpoints" / f"update_{step:06d}" for step in (1, 2, 3)]
    trained = [load_file(folder / "state" / "model.safetensors")["network.enter.weight"] for folder in folders]
    average = trained[0]
    for weight, decay in zip(trained[1:], (2 / 11, 3 / 12), strict=True):
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(load_file(folders[-1] / "policy.safetensors")["network.enter.weight"], average)
    assert not torch.equal(average, trained[-1])


def test_a_run_uses_no_global_random_numbers(tmp_path):
    for name, seed in (("one", 1), ("other", 2)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        job(tmp_path / name, name="p").run()
    assert_same_run(tmp_path / "one", tmp_path / "other", 6)


def test_validation_sees_held_out_episodes_only_and_the_same_noise_each_time(tmp_path):
    """Nothing is learned at a tiny rate, so two validations differ by nothing; without held-out episodes there are none."""
    job(tmp_path / "still", optimizer=AdamW(lr=1e-30), steps=6).run()
    measured = [line for line in lines(tmp_path / "still") if line["kind"] == "eval"]
    assert len(measured) == 2
    assert {name: value for name, value in measured[0].items() if name != "update"} == {
        name: value for name, value in measured[1].items() if name != "update"
    }
    summary = job(tmp_path / "none", validation_share=0.0).run()
    assert [line["kind"] for line in lines(tmp_path / "none")] == ["train"] * 3
    assert (summary.measured, len(summary.lines())) == ({}, 2)


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_good_state(tmp_path, monkeypatch):
    session = Session(job(tmp_path / "run"), resume=False)
    loss = session._loss
    monkeypatch.setattr(session, "_loss", lambda step: loss(step) * (float("nan") if step == 3 else 1.0))
    with pytest.raises(
        NonFiniteError, match=r"the loss of step 3 is nan; use a smaller learning rate; the last good state is .*update_000002"
    ):
        session.loop()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "BehaviourCloning.steps must be at least 1, got 0"),
        ({"ema_decay": 1.0}, r"ema_decay must lie inside \(0, 1\), got 1.0; null trains without"),
        ({"validation_share": 1.0}, r"validation_share must lie in \[0, 1\), got 1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be > 0, got 0.0"),
        ({"execute": 5}, "horizon=4 that begins at first=0 cannot give execute=5"),
        ({"encoder": StateEncoder(sensors=("state",), history=4)}, "horizon=4 that begins at first=3 cannot give execute=2"),
    ],
)
def test_numbers_out_of_range_are_refused(fields, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        job(tmp_path, **fields)


def test_a_batch_that_processes_cannot_share_is_refused():
    assert job(Path("x")).share(4) == 2
    with pytest.raises(ConfigError, match="batch_size=8 cannot be shared evenly by 3 processes; set batch_size=6 or 9"):
        job(Path("x")).share(3)


def test_a_chunk_begins_at_the_oldest_frame_unless_it_is_told_otherwise(tmp_path):
    encoder = StateEncoder(sensors=("state",), history=3)
    assert job(tmp_path, encoder=encoder).present == 2
    assert job(tmp_path, encoder=encoder, first=0).present == 0
    made = job(tmp_path / "run", encoder=encoder, demonstrations=Given(demonstrations=numbered(5, 5, 5)), steps=1)
    made.run()
    policy = load_policy(tmp_path / "run")
    assert (policy.first, policy.history) == (2, 3)


def test_a_sensor_may_be_called_as_a_key_of_configs(tmp_path):
    steps = np.linspace(-1, 1, 6)[:, None]
    shown = episode(steps, np.tile(steps, 2), target=steps.astype(np.float32))
    data = Given(demonstrations=Demonstrations(episodes=(shown, shown), action=SPEC))
    job(tmp_path / "run", demonstrations=data, encoder=StateEncoder(sensors=("target",)), steps=1).run()
    assert load_policy(tmp_path / "run").sensors == ("target",)


def test_metrics_are_one_json_object_a_line(tmp_path):
    job(tmp_path / "run").run()
    for text in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        names = {"loss", "lr", "grad_norm", "epoch", "seconds"} if line["kind"] == "train" else {"eval/loss", "eval/action_error"}
        assert names <= line.keys()


def test_mixed_precision_trains_float32_weights_by_a_loss_in_float32(tmp_path, monkeypatch):
    seen = []
    forward = Session._loss

    def noting(self, step):
        loss = forward(self, step)
        seen.append((loss.dtype, self.accelerator.mixed_precision))
        return loss

    monkeypatch.setattr(Session, "_loss", noting)
    job(tmp_path / "run", mixed_precision="bf16", encoder=CROPPED).run()
    assert seen == [(torch.float32, "bf16")] * 6
    losses = [line["loss"] for line in lines(tmp_path / "run") if line["kind"] == "train"]
    AcceleratorState._reset_state(reset_partial_state=True)
    job(tmp_path / "full", encoder=CROPPED).run()
    exact = [line["loss"] for line in lines(tmp_path / "full") if line["kind"] == "train"]
    assert losses == pytest.approx(exact, rel=0.02)
    assert losses != exact
    assert {tensor.dtype for tensor in load_file(tmp_path / "run" / "policy.safetensors").values()} == {torch.float32}


def test_every_step_draws_noise_and_times_of_its_own_and_the_same_ones_again(tmp_path):
    session = Session(job(tmp_path, demonstrations=Given(demonstrations=numbered(1)), batch_size=1), resume=False)  # a single window
    losses = [session._loss(step).item() for step in (0, 1, 2, 0)]
    assert len(set(losses)) == 3
    assert losses[3] == losses[0]
