"""The ratio gate: a run whose ratio is not 1 before its first update is stopped."""

import re

import pytest
import torch
from toys import Bright, ToyModel, ToySource, count_lines, rewards, sde, trainer

from flowrl.errors import RatioGateError
from flowrl.models import LoRA, StableDiffusion3
from flowrl.train import UpdateSettings

RECOMPUTE = UpdateSettings(old_log_prob="recompute")


def gate(caplog):
    """The largest distance from 1 that the run has logged."""
    (message,) = [record.getMessage() for record in caplog.records if "ratio gate" in record.getMessage()]
    return float(re.search(r"is ([\d.e+-]+)$", message)[1])


def nudge(calls):
    """Between rollout and update, something moves the weights: by 0.01 in one entry of the velocity."""
    with torch.no_grad():
        ToyModel.latest.module.time += 0.01


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_stable_diffusion_3_pipeline_passes_with_a_ratio_of_1_to_rounding(guidance_scale, pipeline_folder, tmp_path, caplog):
    (tmp_path / "prompts.txt").write_text("red\nblue\n", encoding="utf-8")
    model = StableDiffusion3(path=str(pipeline_folder), max_sequence_length=0, lora=LoRA(rank=4), guidance_scale=guidance_scale)
    with caplog.at_level("INFO"):
        trainer(tmp_path / "run", model=model, updates=1).run()
    assert gate(caplog) < 2e-6  # measured 2e-7: batches of other sizes


def test_dropout_is_stopped_before_the_first_update(tmp_path):
    with pytest.raises(RatioGateError, match=r"off by \d\.\d\de.*Likely causes: dropout or train\(\)"):
        trainer(tmp_path / "run", model=ToySource(dropout=0.1)).run()
    assert count_lines(tmp_path / "run") == 0


def test_dropout_is_stopped_even_where_old_log_probabilities_are_recomputed(tmp_path):
    with pytest.raises(RatioGateError, match="dropout"):
        trainer(tmp_path / "run", model=ToySource(dropout=0.1), update=RECOMPUTE).run()


def test_weights_that_changed_between_rollout_and_update_are_noticed(tmp_path):
    Bright.event = staticmethod(nudge)
    with pytest.raises(RatioGateError, match="should be 1, but it is off by"):
        trainer(tmp_path / "run").run()


def test_recomputed_old_log_probabilities_make_the_ratio_1_whatever_the_rollout_stored(tmp_path, caplog):
    Bright.event = staticmethod(nudge)
    with caplog.at_level("INFO"):
        trainer(tmp_path / "run", update=RECOMPUTE, updates=1).run()
    assert gate(caplog) == 0


def test_the_tolerance_decides(tmp_path):
    Bright.event = staticmethod(nudge)
    trainer(tmp_path / "run", update=UpdateSettings(ratio_tolerance=0.1), updates=1).run()
    assert count_lines(tmp_path / "run") == 1


def test_states_stored_in_bfloat16_are_scored_as_stored(tmp_path, caplog):
    with caplog.at_level("INFO"):
        trainer(tmp_path / "run", sampler=sde(state_dtype="bfloat16"), updates=2).run()
    assert gate(caplog) < 2e-6
    assert all(0 < reward < 1 for reward in rewards(tmp_path / "run"))
