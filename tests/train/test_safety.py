"""What stops a run, what it says, and that nothing is lost: non-finite numbers, wrong settings, signals."""

import math
import shutil
import signal
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from toys import Bright, ExplodingSource, ToyModel, assert_same_run, count_lines, fork, signal_self, trainer

from flowrl.errors import CheckpointError, ConfigError, NonFiniteError
from flowrl.rl import PPOClip
from flowrl.train import Evaluation, UpdateSettings
from flowrl.train.checkpoint import check_complete
from flowrl.train.signals import StopRequest
from samplers import ODESampler, ShiftedGrid


def at(update, value):
    """An event of the reward's update-th call."""
    return staticmethod(lambda calls: value if calls == update else None)


@dataclass(frozen=True, kw_only=True)
class Fragile(PPOClip):
    """PPOClip whose loss or gradient may be spoilt at some call."""

    spoil: ClassVar[dict[int, float]] = {}
    calls: ClassVar[list[int]] = [0]

    def __call__(self, log_ratio, advantage, mask, context=None):
        loss, metrics = super().__call__(log_ratio, advantage, mask, context)
        Fragile.calls[0] += 1
        return loss * Fragile.spoil.get(Fragile.calls[0] - 1, 1.0), metrics


@pytest.fixture(autouse=True)
def _unspoilt():
    Fragile.spoil.clear()
    Fragile.calls[0] = 0


@pytest.fixture
def uninterrupted(tmp_path):
    """The run that nothing stopped."""

    def run(**fields):
        trainer(tmp_path / "whole", **fields).run()
        Bright.calls, Fragile.calls[0] = 0, 0
        return tmp_path / "whole"

    return run


# ------------------------------------------------------------------------------------------------- non-finite numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_a_reward_that_is_no_number_is_named_and_the_state_before_it_is_saved(value, tmp_path, uninterrupted):
    whole = uninterrupted()
    Bright.event = at(3, value)
    message = rf"reward 'bright' is {value} for prompt '\d', member 3 of its group \(1 of 8 scores in this update; on_reward_failure=drop"
    with pytest.raises(NonFiniteError, match=message):
        trainer(tmp_path / "run").run()
    assert count_lines(tmp_path / "run") == 3
    assert check_complete(tmp_path / "run" / "checkpoints" / "update_000003") == 3
    Bright.event = at(-1, None)
    trainer(tmp_path / "run").run(resume=True)
    assert_same_run(whole, tmp_path / "run", 6)


def test_a_reward_that_fails_loses_no_update(tmp_path, uninterrupted):
    whole = uninterrupted()

    def fail(calls):
        if calls == 3:
            raise OSError("the reward's server is gone")

    Bright.event = staticmethod(fail)
    with pytest.raises(OSError, match="server is gone"):
        trainer(tmp_path / "run").run()
    assert check_complete(tmp_path / "run" / "checkpoints" / "update_000003") == 3
    Bright.event = at(-1, None)
    trainer(tmp_path / "run").run(resume=True)
    assert_same_run(whole, tmp_path / "run", 6)


def test_a_failure_in_the_first_update_leaves_no_checkpoint_of_nothing(tmp_path):
    Bright.event = staticmethod(lambda calls: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path / "run").run()
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_metrics_without_their_checkpoints_are_not_overwritten_by_a_resumed_run(tmp_path):
    trainer(tmp_path / "run").run()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match="shows 6 updates, but there is no checkpoint"):
        trainer(tmp_path / "run").run(resume=True)
    assert count_lines(tmp_path / "run") == 6


def test_more_minibatches_than_states_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="minibatches is 99, but a rollout has only 32 states"):
        trainer(tmp_path / "run", update=UpdateSettings(minibatches=99)).run()


def test_a_loss_that_is_no_number_is_found_in_its_micro_batch_and_leaves_the_state_before_it(tmp_path, uninterrupted):
    fields = {"objective": Fragile(), "update": UpdateSettings(micro_batch=16)}  # 32 parents: two micro-batches an update
    whole = uninterrupted(**fields)
    Fragile.spoil[7] = math.nan
    message = r"optimiser step 0 of this update: the loss of micro-batch 1 \(noise levels 0\.400 to 0\.667\) is nan"
    with pytest.raises(NonFiniteError, match=message):
        trainer(tmp_path / "run", **fields).run()
    assert check_complete(tmp_path / "run" / "checkpoints" / "update_000003") == 3
    Fragile.spoil.clear()
    trainer(tmp_path / "run", **fields).run(resume=True)
    assert_same_run(whole, tmp_path / "run", 6)


def test_a_gradient_that_is_no_number_is_found_in_its_parameter_although_the_losses_are_finite(tmp_path, uninterrupted):
    whole = uninterrupted()

    def spoil_gradient(calls):
        if calls == 3:
            ToyModel.latest.module.time.register_hook(lambda gradient: gradient * math.nan)

    Bright.event = staticmethod(spoil_gradient)
    message = "gradient norm is nan although the losses are finite; first in time, 1 of 3 parameters"
    with pytest.raises(NonFiniteError, match=message):
        trainer(tmp_path / "run").run()
    Bright.event = at(-1, None)
    trainer(tmp_path / "run").run(resume=True)
    assert_same_run(whole, tmp_path / "run", 6)


def test_good_optimiser_steps_of_the_update_that_failed_are_kept(tmp_path):
    Fragile.spoil[6] = math.nan  # the third step of update 1
    fields = {"objective": Fragile(), "update": UpdateSettings(minibatches=4, micro_batch=100), "checkpoint_every": 100}
    with pytest.raises(NonFiniteError, match="optimiser step 2 of this update"):
        trainer(tmp_path / "run", **fields).run()
    assert check_complete(tmp_path / "run" / "checkpoints" / "update_000001") == 1
    Fragile.spoil.clear()
    assert trainer(tmp_path / "run", **fields).run(resume=True).updates == 6


def test_weights_that_are_no_numbers_any_more_are_not_saved(tmp_path, caplog):
    def spoil_weights(calls):
        if calls == 3:
            with torch.no_grad():
                ToyModel.latest.module.time[0] = math.nan

    Bright.event = staticmethod(spoil_weights)
    with pytest.raises(NonFiniteError, match="loss of micro-batch 0"):
        trainer(tmp_path / "run").run()
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["update_000002"]
    assert "not finite any more and were not saved; the last good state is" in caplog.text


def test_an_evaluation_that_gives_no_number_stops_the_run_after_a_checkpoint(tmp_path):
    @dataclass(frozen=True)
    class Undefined(Bright):
        weights: ClassVar[dict[str, float]] = {"undefined": 1.0}

        def __call__(self, samples, prompts):
            scores = super().__call__(samples, prompts).parts["bright"]
            return type(super().__call__(samples, prompts))({"undefined": scores * math.nan})

    evaluation = Evaluation(prompts=("0",), sampler=ODESampler(grid=ShiftedGrid(steps=2)), rewards=(Undefined(),))
    with pytest.raises(NonFiniteError, match="score 'undefined' is nan for the prompt '0'"):
        trainer(tmp_path / "run", evaluation=evaluation).run()
    assert check_complete(tmp_path / "run" / "checkpoints" / "update_000000") == 0


# ----------------------------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(("groups", "processes", "fitting"), [(10, 4, "8 or 12"), (3, 8, "8"), (7, 2, "6 or 8")])
def test_group_arithmetic_that_does_not_fit_says_what_would(groups, processes, fitting, tmp_path):
    message = (
        rf"prompts_per_update = {groups} groups of 4 cannot be shared evenly by {processes} processes; set prompts_per_update={fitting}, "
    )
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path / "run", prompts_per_update=groups).check_groups(processes)
    assert trainer(tmp_path / "run", prompts_per_update=2 * processes).check_groups(processes) == 2


def test_a_folder_that_holds_a_run_is_refused_before_the_model_is_loaded(tmp_path):
    trainer(tmp_path / "run", updates=1).run()
    message = r"run already holds a run; go on with --resume, or choose another run_dir"
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path / "run", model=ExplodingSource()).run()
    assert count_lines(tmp_path / "run") == 1
    (tmp_path / "run" / "metrics.jsonl").unlink()  # a checkpoint alone is a run as well
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path / "run", model=ExplodingSource()).run()


@pytest.mark.parametrize(("content", "message"), [(b" \n\n", "holds no prompt"), (b"caf\xe9\n", "is not UTF-8")], ids=["empty", "latin-1"])
def test_a_prompt_file_that_cannot_be_used_is_refused_before_the_model_is_loaded(content, message, tmp_path):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "run", model=ExplodingSource(), prompts=str(tmp_path / "bad.txt")).run()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("updates", 0, "updates must be at least 1, got 0"),
        ("keep_checkpoints", 0, "keep_checkpoints must be at least 1"),
        ("ema_decay", 1.0, r"ema_decay must lie inside \(0, 1\), got 1.0; null trains without an average"),
    ],
)
def test_numbers_out_of_range_are_refused_when_the_trainer_is_built(field, value, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path / "run", **{field: value})


# ------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_between_phases_with_a_checkpoint_and_the_resumed_run_is_the_same(number, tmp_path, uninterrupted):
    whole = uninterrupted(checkpoint_every=100)

    def work():
        signal_self(tmp_path / "run", 3, number)
        trainer(tmp_path / "run", checkpoint_every=100).run()

    child = fork(work, tmp_path / "output")
    assert child.wait() == 1
    assert child.output.read_text().endswith("Stopped: ")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert check_complete(checkpoint) == count_lines(tmp_path / "run") == 3
    trainer(tmp_path / "run", checkpoint_every=100).run(resume=True)
    assert_same_run(whole, tmp_path / "run", 6)


def test_a_second_ctrl_c_interrupts_at_once_and_a_sigterm_after_the_first_does_not():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
