"""The gradient of an update in closed form, and what of a rollout enters it."""

import pytest
import torch
from gate_jobs import job

from flowrl.rl import PolicyGradient
from flowrl.shapes import seeded_generator
from flowrl.train import AdamW
from robot import ConstantGateConfig
from robot.gating.file import GATES
from robot.gating.session import Session


def session(folder, **settings):
    return Session(job(folder, gate=ConstantGateConfig(steps=3), objective=PolicyGradient(), **settings), resume=False)


def gradients(learner):
    """Those that each optimiser step will use, before clipping could change them."""
    seen = []
    learner.optimizer.register_step_pre_hook(lambda *_: seen.append(learner.gate.mean.grad.clone()))
    return seen


@pytest.mark.parametrize("micro_batch", [1024, 3], ids=["at once", "in micro-batches"])
def test_the_gradient_is_that_of_the_policy_gradient_over_the_decisions_that_count(tmp_path, micro_batch):
    with session(tmp_path / "run", micro_batch=micro_batch, epochs=1, max_grad_norm=1.0e9) as run:
        experience = run.collector.collect(0).experience
        seen = gradients(run.learner)
        spread = run.gate.spread.detach().double().exp()
        run.learner.update(experience, 0)
    record = experience.record
    counts = record.counts.double()
    assert bool(counts[:, 0].all())
    assert not bool(counts[:, -1].any())  # what is decided at the last step moves frames after the actions were asked for
    scores = record.decisions.double() / spread**2  # the mean is 0
    by_hand = -(experience.advantage.double()[:, None, None] * scores * counts).sum((0, 1)) / counts.sum()
    torch.testing.assert_close(seen[0].double(), by_hand, atol=1e-5, rtol=1e-4)


def test_a_reward_that_grows_with_a_multiplier_raises_it(tmp_path):
    """By hand: members that drew more of latent 0 are better, so its mean rises, and only its."""
    with session(tmp_path / "run", group_size=64, groups=2, rows=128, epochs=1, optimizer=AdamW(lr=0.1, weight_decay=0.0)) as run:
        experience = run.collector.collect(0).experience
        tried = experience.record.decisions[:, 0, 0]
        run.learner.update(type(experience)(record=experience.record, advantage=tried / tried.std()), 0)
        moved = run.gate.mean.detach()
    assert float(moved[0]) == pytest.approx(0.1, abs=1e-4)  # AdamW's first step is its learning rate


def test_members_share_a_base_noise_that_changes_from_update_to_update(tmp_path):
    with Session(job(tmp_path / "run", seeds="0:2"), resume=False) as run:
        first, again, second = (run.collector.collect(update).experience.record.latents[:, 0] for update in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first[:4], first[:1].expand(4, -1, -1, -1))
    assert not torch.equal(first[0], first[4])
    assert not any(torch.equal(one, other) for one in first[[0, 4]] for other in second[[0, 4]])


def test_every_seed_is_rolled_out_once_before_any_comes_again(tmp_path):
    with session(tmp_path / "run", seeds="0:6,90:92", groups=2) as run:
        batches = [run.collector._batches.rows(update).tolist() for update in range(4)]
        assert run.collector._seeds == (0, 1, 2, 3, 4, 5, 90, 91)
    assert sorted(row for batch in batches for row in batch) == list(range(8))


def test_the_average_of_the_weights_is_what_is_saved(tmp_path):
    with session(tmp_path / "run", ema_decay=0.9, optimizer=AdamW(lr=0.1, weight_decay=0.0)) as run:
        run.loop()
        trained = run.gate.mean.detach().clone()
        average = run.learner.average.state_dict()["average"]
        names = [name for name, _ in run.gate.named_parameters()]
    saved = GATES.load(tmp_path / "run")[1]
    assert torch.equal(saved["gate.mean"], average[names.index("mean")])
    assert not torch.equal(saved["gate.mean"], trained)


def test_the_order_of_the_chunks_is_that_of_the_seed_and_the_update(tmp_path):
    with session(tmp_path / "run", minibatches=2, epochs=1, max_grad_norm=1.0e9, optimizer=AdamW(lr=1.0e-9, weight_decay=0.0)) as run:
        experience = run.collector.collect(0).experience
        seen = gradients(run.learner)
        run.learner.update(experience, 7)
    halves = torch.randperm(len(experience), generator=seeded_generator(1, 13, 7, 0)).tensor_split(2)
    counts = experience.record.counts.double()
    scores = experience.record.decisions.double() / torch.tensor(-0.5).double().exp() ** 2
    for half, found in zip(halves, seen, strict=True):
        weighted = experience.advantage.double()[half, None, None] * scores[half] * counts[half]
        torch.testing.assert_close(found.double(), -weighted.sum((0, 1)) / counts[half].sum(), atol=1e-5, rtol=1e-4)
