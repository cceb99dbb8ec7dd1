"""Training a gate on the closed form: it learns, leaves the model alone, stops and goes on, and refuses what cannot work."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from gate_jobs import job, lines

from flowrl.errors import CheckpointError, ConfigError, NonFiniteError, RatioGateError
from flowrl.rl import PolicyGradient, PPOClip
from flowrl.train import AdamW
from flowrl.train.checkpoint import check_complete
from robot import ConstantGateConfig
from robot.gating import OutcomeReward
from robot.gating.file import GATES, load_gate
from robot.gating.learner import Learner
from robot.gating.rollouts import Explorer
from robot.gating.session import Session
from robot.gating.toy import TwoModes
from robot.gating.toy_task import TwoModesTask


def untimed(found):
    return [{name: value for name, value in line.items() if name not in ("seconds", "rollout_s", "update_s")} for line in found]


def weights(run_dir):
    return GATES.load(run_dir)[1]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "settings",
    [
        {"gate": ConstantGateConfig(steps=3), "optimizer": AdamW(lr=0.1, weight_decay=0.0)},
        {"gate": ConstantGateConfig(steps=3), "optimizer": AdamW(lr=0.1, weight_decay=0.0), "hold": "episode", "antithetic": True},
    ],
    ids=["fresh noise at every step", "antithetic noise held for the episode"],
)
def test_the_gate_learns_to_imagine_the_latent_that_tells(tmp_path, settings):
    sizes = {"groups": 8, "group_size": 16, "updates": 12, "epochs": 4, "rows": 128, "seeds": "0:1000"}
    summary = job(tmp_path / "run", evaluation_seeds="1000:1200", evaluate_every=100, **sizes, **settings).run()
    found = summary.evaluation
    assert found["success"] - found["shared/success"] > 0.1
    assert found["difference_95"][0] > 0.05
    assert found["mcnemar_p"] < 1e-4
    multipliers = lines(tmp_path / "run")[-1]["multiplier"]
    assert multipliers[1] > 1.2
    assert lines(tmp_path / "run")[-1]["reward"] > 3 * lines(tmp_path / "run")[0]["reward"]  # rewards are negative errors here
    row = next(line.split() for line in summary.lines() if line.startswith("success"))
    assert row[1:4] == [f"{found['shared/success']:.3f}", f"{found['success']:.3f}", f"{found['difference']:+.3f}"]


def test_nothing_but_the_gate_changes_and_no_gradient_leaves_it(tmp_path):
    with Session(job(tmp_path / "run"), resume=False) as session:
        parts = (session.model.network, session.model.codec)
        before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
        gate = {name: value.clone() for name, value in session.gate.state_dict().items()}
        session.loop()
        for part, held in zip(parts, before, strict=True):
            assert_same_weights(part.state_dict(), held)
            assert all(parameter.grad is None and not parameter.requires_grad for parameter in part.parameters())
        trained = {id(parameter) for group in session.learner.optimizer.param_groups for parameter in group["params"]}
        assert trained == {id(parameter) for parameter in session.gate.parameters()}
        assert any(not torch.equal(value, gate[name]) for name, value in session.gate.state_dict().items())
    assert_same_weights(TwoModes().load().network.state_dict(), before[0])


def test_before_the_first_update_every_ratio_is_one(tmp_path):
    with Session(job(tmp_path / "run", hold="episode", antithetic=True), resume=False) as session:
        collected = session.collector.collect(0)
        assert session.learner.check_ratio(collected.experience) < 1e-5


def test_a_gate_that_scores_otherwise_than_it_decides_is_found_out(tmp_path, monkeypatch):
    score = Learner.check_ratio

    def check(self, experience):
        with torch.no_grad():
            self.gate.bias.add_(0.1)
        return score(self, experience)

    monkeypatch.setattr(Learner, "check_ratio", check)
    with pytest.raises(RatioGateError, match="the ratio of every decision should be 1, but one is off by"):
        job(tmp_path / "run").run()


@pytest.mark.slow
def test_rows_workers_and_micro_batches_do_not_matter(tmp_path):
    ways = {"wide": {}, "narrow": {"rows": 3}, "parts": {"micro_batch": 3}, "processes": {"workers": 2}}
    for name, settings in ways.items():
        job(tmp_path / name, updates=2, hold="chunk", antithetic=True, **settings).run()
    wide = weights(tmp_path / "wide")
    for name in ways:
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(value, wide[key], atol=1e-4, rtol=1e-3)
        rewards = [line["reward"] for line in lines(tmp_path / name)]
        assert rewards == pytest.approx([line["reward"] for line in lines(tmp_path / "wide")], abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.9, "minibatches": 2}], ids=["plain", "with a weight average"])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path, settings):
    settings = {"evaluation_seeds": "500:504", "evaluate_every": 2, "checkpoint_every": 2, **settings}
    job(tmp_path / "whole", updates=5, **settings).run()
    job(tmp_path / "parts", updates=3, **settings).run()
    summary = job(tmp_path / "parts", updates=5, **settings).run(resume=True)
    assert summary.updates == 5
    assert_same_weights(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    for kind in ("train", "eval"):
        both = [{line["update"]: line for line in untimed(lines(tmp_path / name, kind))} for name in ("parts", "whole")]
        both[0].pop(3 if kind == "eval" else None, None)  # the end of the first part was evaluated too
        assert both[0] == both[1]


@pytest.mark.parametrize("act", [1, 6], ids=["in the first rollout", "in the third"])
def test_ctrl_c_leaves_a_checkpoint_and_the_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, act):
    settings = {"rows": 4, "checkpoint_every": 100}  # two calls of the model per update
    job(tmp_path / "whole", **settings).run()
    ask, calls = Explorer.act, []

    def interrupted(self, *given, **names):
        calls.append(1)
        if len(calls) == act:
            signal.raise_signal(signal.SIGINT)
        return ask(self, *given, **names)

    monkeypatch.setattr(Explorer, "act", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "stopped", **settings).run()
    done = (act - 1) // 2
    assert check_complete(tmp_path / "stopped" / "checkpoints" / f"update_{done:06d}") == done
    assert load_gate(tmp_path / "stopped" / "checkpoints" / f"update_{done:06d}").steps == 3
    job(tmp_path / "stopped", **settings).run(resume=True)
    assert_same_weights(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    assert untimed(lines(tmp_path / "stopped")) == untimed(lines(tmp_path / "whole"))


def test_a_loss_that_is_not_finite_keeps_the_last_good_weights(tmp_path, monkeypatch):
    loss = Learner._loss

    def spoilt(self, experience, rows):
        value, metrics = loss(self, experience, rows)
        bad = self.schedule.last_epoch >= 4
        return (value * torch.nan, metrics | {"loss": torch.tensor(torch.nan)}) if bad else (value, metrics)

    monkeypatch.setattr(Learner, "_loss", spoilt)
    with pytest.raises(NonFiniteError, match=r"use a smaller optimizer\.lr"):
        job(tmp_path / "run").run()
    assert check_complete(tmp_path / "run" / "checkpoints" / "update_000002") == 2


def test_an_update_that_fails_half_way_leaves_no_trace_in_the_checkpoint(tmp_path, monkeypatch):
    """It fails at the second of its two optimiser steps; resumed, the run ends where one ends that never failed."""
    loss, failed = Learner._loss, []

    def spoilt(self, experience, rows):
        if self.schedule.last_epoch == 3 and not failed:
            failed.append(True)
            raise RuntimeError("out of memory")
        return loss(self, experience, rows)

    job(tmp_path / "whole").run()
    monkeypatch.setattr(Learner, "_loss", spoilt)
    with pytest.raises(RuntimeError, match="out of memory"):
        job(tmp_path / "failed").run()
    job(tmp_path / "failed").run(resume=True)
    assert failed
    assert_same_weights(weights(tmp_path / "failed"), weights(tmp_path / "whole"))


def test_a_run_is_not_resumed_on_another_model_or_with_other_settings(tmp_path):
    job(tmp_path / "run", updates=1).run()
    with pytest.raises(ConfigError, match="already holds a run; go on with --resume"):
        job(tmp_path / "run").run()
    with pytest.raises(CheckpointError, match=r"another configuration \(hold: step -> chunk\)"):
        job(tmp_path / "run", hold="chunk").run(resume=True)

    class Disguised(TwoModes):
        def load(self, device="cpu"):
            return replace(self, std=0.3).__class__.__mro__[1].load(replace(self, std=0.3), device)

    Disguised.__module__, Disguised.__qualname__, Disguised.__name__ = TwoModes.__module__, "TwoModes", "TwoModes"
    with pytest.raises(CheckpointError, match="trained on another world-action model"):
        job(tmp_path / "run", model=Disguised(), updates=2).run(resume=True)


def test_groups_that_tell_nothing_leave_the_gate_as_it_is(tmp_path):
    job(tmp_path / "run", reward=OutcomeReward(), env=TwoModesTask(tolerance=50.0), updates=2).run()
    assert [line["informative"] for line in lines(tmp_path / "run")] == [0.0, 0.0]
    assert [line["trained_chunks"] for line in lines(tmp_path / "run")] == [0, 0]
    assert all("loss" not in line for line in lines(tmp_path / "run"))
    assert float(weights(tmp_path / "run")["gate.network.last.weight"].abs().max()) == 0


def test_a_fresh_gate_is_evaluated_as_the_shared_schedule_and_constants_are_where_it_starts(tmp_path):
    settings = {"evaluation_seeds": "500:520", "updates": 1, "optimizer": AdamW(lr=1.0e-9, weight_decay=0.0)}
    job(tmp_path / "fresh", **settings).run()
    first, last = lines(tmp_path / "fresh", "eval")
    assert (first["update"], last["update"]) == (0, 1)
    assert first["difference"] == last["difference"] == 0
    assert first["final_time"] == [0, 0, 0]
    assert first["success"] == first["shared/success"] == last["success"]
    episodes = [json.loads(line) for line in (tmp_path / "fresh" / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [episode["arm"] for episode in episodes] == ["shared"] * 20 + ["update 1"] * 20
    job(tmp_path / "started", start=(0.5, 1.5, 1.0), **settings).run()
    found = lines(tmp_path / "started", "eval")[0]
    assert found["final_time"] == pytest.approx([0.5, 0.0, 0.0], abs=1e-6)
    assert found["times"][1] == pytest.approx([1 - 0.5 / 3, 0.5, 2 / 3], abs=1e-6)
    assert (found["evaluations/video_per_action"], found["evaluations/action_per_action"]) == (3.0, 3.0)


def test_any_objective_that_needs_no_reference_will_do_and_entropy_can_be_kept_up(tmp_path):
    job(tmp_path / "pg", objective=PolicyGradient(), updates=2).run()
    assert "clip_fraction" not in lines(tmp_path / "pg")[0]
    settings = {"gate": ConstantGateConfig(steps=3, log_std=-2.0), "updates": 3, "optimizer": AdamW(lr=0.05, weight_decay=0.0)}
    for name, weight in (("without", 0.0), ("with", 10.0)):
        job(tmp_path / name, entropy_weight=weight, **settings).run()
    spreads = {name: lines(tmp_path / name)[-1]["log_std"] for name in ("without", "with")}
    assert min(spreads["with"]) > max(*spreads["without"], -1.9)


def test_metrics_tell_what_the_rollouts_were(tmp_path):
    job(tmp_path / "run", updates=2).run()
    first = lines(tmp_path / "run")[0]
    assert (first["phase"], first["episodes"], first["control_steps"], first["chunks"]) == ("rollout", 8, 8, 8)
    assert first["network_evaluations"] == 8 * 2 * 3
    assert lines(tmp_path / "run")[1]["episodes"] == 16
    assert first["reward"] == first["reward/max_reward"] == pytest.approx(first["max_reward"])
    assert first["evaluations/video_per_chunk"] == first["evaluations/action_per_action"] == 3.0
    assert first["times"][0] == [1.0, 1.0, 1.0]
    assert first["times"][-1] == first["final_time"]
    assert len(first["multiplier"]) == len(first["log_std"]) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2, got 1"),
        ({"group_size": 5, "antithetic": True}, "antithetic members come in pairs, but group_size is 5"),
        ({"seeds": "0:1"}, "seeds names 1 episodes, fewer than the 2 groups"),
        ({"evaluation_seeds": "50:60"}, "must be disjoint"),
        ({"hold": "run"}, "hold must be one of step, chunk, episode"),
        ({"updates": 0}, "GateTraining.updates must be at least 1, got 0"),
        ({"entropy_weight": float("nan")}, "entropy_weight must be >= 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"ema_decay": 1.0}, "ema_decay must lie inside"),
        ({"objective": PPOClip(clip=0.2, kl_weight=0.1)}, "without a reference gate; set objective.kl_weight to 0"),
        ({"correlation": 1.0}, "correlation must lie in .0, 1., got 1.0"),
        ({"workers": -1}, "workers must be >= 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        job(tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": ConstantGateConfig(steps=1)}, "at least 2 denoising steps, got 1: times after the last step are never read"),
        ({"start": (0.5,)}, "start: start_from wants 3 multipliers, one per latent, got 1"),
        ({"start": (0.5, 2.5, 1.0)}, "start: multipliers must lie in"),
    ],
)
def test_gates_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        job(tmp_path / "run", **settings).run()
    assert not (tmp_path / "run").exists()


def test_the_smoke_config_trains_resumes_and_trains_on(tmp_path):
    from flowrl.config import instantiate, load_config

    place = [f"run_dir={tmp_path / 'run'}"]
    instantiate(load_config("smoke/robot_gate", [*place, "updates=2"])).run()
    summary = instantiate(load_config("smoke/robot_gate", [*place, "updates=4"])).run(resume=True)
    assert [line["update"] for line in lines(tmp_path / "run")] == [0, 1, 2, 3]
    assert [line["update"] for line in lines(tmp_path / "run", "eval")] == [0, 2, 4]
    assert load_gate(summary.checkpoint).steps == 3


@pytest.mark.parametrize("name", ["robot/gate_pusht", "robot/gate_metaworld_push"])
def test_the_remedies_are_a_line_each(name):
    from flowrl.config import instantiate, load_config

    held = instantiate(load_config(name))
    assert (held.hold, held.antithetic) == ("episode", True)
    demonstrations = ["target=robot.demonstrations.RobomimicHDF5", "path=x.hdf5"]
    others = [
        "hold=chunk",
        "antithetic=false",
        "correlation=0.8",
        "start=[0.6,0.6,0.6,0.6]",
        "groups=16",
        "group_size=32",
        "reward.success=0.0",
        "gate.target=robot.ConstantGateConfig",
        "warm_up.target=robot.gating.ActionErrorWarmUp",
        *(f"warm_up.demonstrations.{line}" for line in demonstrations),
    ]
    changed = instantiate(load_config(name, others))
    assert (changed.hold, changed.start, changed.correlation, changed.warm_up.updates) == ("chunk", (0.6,) * 4, 0.8, 20)
    assert isinstance(changed.gate, ConstantGateConfig)
