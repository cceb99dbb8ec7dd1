"""Nothing of an update outlives it: no autograd graph in rollouts, no final states in the update, no trajectory after it."""

import gc
import weakref
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import torch
from toys import GRID, Bright, ToyModel, sde, trainer

from flowrl.rl import PPOClip
from flowrl.train import Evaluation, UpdateSettings
from flowrl.train.learner import Learner
from samplers import ODESampler


@dataclass(frozen=True)
class SpySampler:
    """Another sampler, whose trajectories are watched and whose network calls must have no graph."""

    inner: Any
    watched: ClassVar[list[dict[str, Any]]] = []

    @property
    def dynamics(self):
        return self.inner.dynamics

    @property
    def group_size(self):
        return self.inner.group_size

    @property
    def initial_time(self):
        return self.inner.initial_time

    def noise_rows(self):
        return self.inner.noise_rows()

    def for_update(self, update, seed):
        check_dead(SpySampler.watched, ("trajectory", "samples", "children", "parents"))
        return self

    def sample(self, field, noise, condition, generator=None):
        assert not torch.is_grad_enabled()
        trajectory = self.inner.sample(field, noise, condition, generator)
        for name in (field.name for field in fields(trajectory)):
            value = getattr(trajectory, name)
            assert not (torch.is_tensor(value) and value.requires_grad), name
        parts = {name: weakref.ref(getattr(trajectory, name)) for name in ("samples", "children", "parents")}
        SpySampler.watched.append({"trajectory": weakref.ref(trajectory), **parts})
        return trajectory


def check_dead(watched, names):
    for parts in watched:
        alive = [name for name in names if parts[name]() is not None]
        assert not alive, alive


@dataclass(frozen=True, kw_only=True)
class SpyObjective(PPOClip):
    """In the update the final states are gone, and what is learned from is still there."""

    def __call__(self, log_ratio, advantage, mask, context=None):
        check_dead(SpySampler.watched[-1:], ("samples", "trajectory"))
        assert SpySampler.watched[-1]["children"]() is not None
        return super().__call__(log_ratio, advantage, mask, context)


@pytest.mark.parametrize("old_log_prob", ["rollout", "recompute"])
def test_final_states_die_before_the_update_and_the_trajectory_with_it(old_log_prob, tmp_path):
    SpySampler.watched.clear()
    gc.disable()  # reference counts alone must free them
    try:
        settings = UpdateSettings(old_log_prob=old_log_prob, micro_batch=8)
        trainer(tmp_path / "run", sampler=SpySampler(sde()), objective=SpyObjective(), updates=3, update=settings).run()
        check_dead(SpySampler.watched, ("trajectory", "samples", "children", "parents"))
    finally:
        gc.enable()
    assert len(SpySampler.watched) == 3


def test_the_memory_of_the_final_states_is_free_in_the_update(tmp_path, monkeypatch):
    seen, update = [], Learner.update
    monkeypatch.setattr(Learner, "update", lambda self, experience: (seen.append(experience), update(self, experience))[1])
    trainer(tmp_path / "run", updates=1).run()
    assert seen[0].trajectory.samples.untyped_storage().nbytes() == 0


def test_rollouts_evaluations_and_the_gate_build_no_graph(tmp_path):
    grad_enabled = []

    class Source:
        def load(self, device):
            from toys import LinearNet

            module = LinearNet()
            module.register_forward_pre_hook(lambda *_: grad_enabled.append(torch.is_grad_enabled()))
            return ToyModel(module)

    evaluation = Evaluation(prompts=("0",), sampler=ODESampler(grid=GRID), rewards=(Bright(),))
    trainer(tmp_path / "run", model=Source(), updates=2, evaluation=evaluation, update=UpdateSettings(micro_batch=100)).run()
    # evaluation 4; update 0: rollout 4, gate 1, training 1; update 1: rollout 4, training 1; evaluation 4
    assert grad_enabled == [False] * 9 + [True] + [False] * 4 + [True] + [False] * 4
