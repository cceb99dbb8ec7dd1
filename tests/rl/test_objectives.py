"""Every objective of the registry: what all must keep. Then each branch of the ones that are here, by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.rl import OBJECTIVES, PolicyGradient, PPOClip, Registry, StepBatch, register_objective
from flowrl.testing import check_objective

LOSSES = json.loads((Path(__file__).parents[1] / "goldens" / "sde_steps.json").read_text())["losses"]
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
BATCH, STEP = 6, 4


def ready(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def everything(log_ratio):
    """A context that holds all an objective may ask for."""
    zeros = torch.zeros_like(log_ratio)
    groups = torch.arange(len(log_ratio)) % 2
    return StepBatch(
        kappa=zeros, kl_reference=zeros, log_prob=log_ratio - 1, step_std=zeros + 0.5, reward=ready(BATCH, 1), group_ids=groups
    )


def gradient(objective, log_ratio, advantage, mask):
    leaf = log_ratio.clone().requires_grad_()
    loss, metrics = objective(leaf, advantage, mask, everything(leaf))
    return torch.autograd.grad(loss, leaf)[0], loss.detach(), metrics


@every_objective
def test_every_objective_keeps_the_contract(name):
    check_objective(OBJECTIVES[name]())


@every_objective
@given(keep=st.lists(st.booleans(), min_size=BATCH * STEP, max_size=BATCH * STEP).filter(any))
def test_at_ratio_one_the_gradient_is_minus_the_advantage_over_the_kept_entries(name, keep):
    mask, advantage = torch.tensor(keep).reshape(BATCH, STEP), ready(BATCH)
    found, _, _ = gradient(OBJECTIVES[name](), torch.zeros(BATCH, STEP), advantage, mask)
    expected = torch.where(mask, -advantage[:, None] / sum(keep), 0.0)
    torch.testing.assert_close(found, expected)


@every_objective
def test_what_stands_in_masked_entries_changes_nothing_at_all(name):
    mask = torch.arange(BATCH * STEP).reshape(BATCH, STEP) % 3 != 1
    log_ratio, advantage = 0.2 * ready(BATCH, STEP), ready(BATCH)[:, None].expand(BATCH, STEP)
    clean, loss, metrics = gradient(OBJECTIVES[name](), torch.where(mask, log_ratio, 0.0), advantage, mask)
    for poison in (torch.nan, torch.inf, -torch.inf, 1e30):
        holes = torch.where(mask, 0.0, torch.tensor(poison))
        dirty, dirty_loss, dirty_metrics = gradient(OBJECTIVES[name](), log_ratio + holes, advantage + holes, mask)
        assert torch.equal(dirty, clean)
        assert torch.equal(dirty_loss, loss)
        assert (dirty[~mask] == 0).all()
        assert {name: value.item() for name, value in dirty_metrics.items()} == {name: value.item() for name, value in metrics.items()}


@every_objective
def test_no_gradient_goes_through_the_advantage(name):
    log_ratio, advantage = (0.1 * ready(BATCH, STEP)).requires_grad_(), ready(BATCH).requires_grad_()
    loss, _ = OBJECTIVES[name]()(log_ratio, advantage, torch.ones(BATCH, STEP, dtype=torch.bool), everything(log_ratio))
    loss.backward()
    assert advantage.grad is None
    assert log_ratio.grad is not None


@every_objective
def test_rows_may_come_in_any_order(name):
    mask, order = torch.rand(BATCH, STEP, generator=torch.Generator().manual_seed(2)) < 0.7, torch.tensor([3, 0, 5, 1, 4, 2])
    log_ratio, advantage = 0.2 * ready(BATCH, STEP), ready(BATCH)
    objective, context = OBJECTIVES[name](), everything(log_ratio)
    loss, _ = objective(log_ratio, advantage, mask, context)
    permuted, _ = objective(log_ratio[order], advantage[order], mask[order], context[order])
    torch.testing.assert_close(permuted, loss)


@every_objective
def test_no_advantage_means_no_gradient_on_policy(name):
    found, _, _ = gradient(OBJECTIVES[name](), torch.zeros(BATCH, STEP), torch.zeros(BATCH), torch.ones(BATCH, STEP, dtype=torch.bool))
    assert (found == 0).all()


@every_objective
def test_low_precision_log_ratios_are_treated_in_float32(name):
    mask = torch.ones(BATCH, STEP, dtype=torch.bool)
    log_ratio = (1e-3 * ready(BATCH, STEP)).bfloat16()
    loss, metrics = OBJECTIVES[name]()(log_ratio, ready(BATCH), mask, everything(log_ratio))
    exact, _ = OBJECTIVES[name]()(log_ratio.float(), ready(BATCH), mask, everything(log_ratio.float()))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)
    assert all(value.ndim == 0 for value in metrics.values())


@every_objective
@pytest.mark.parametrize(
    ("log_ratio", "advantage", "mask", "message"),
    [
        ((6,), (6,), (6,), r"log_ratio must have the shape \(batch, step\), got \(6,\)"),
        ((6, 4), (4,), (6, 4), r"advantage must have the shape \(6,\) or \(6, 4\), like log_ratio, got \(4,\)"),
        ((6, 4), (6, 1), (6, 4), r"advantage must have .* got \(6, 1\)"),
        ((6, 4), (1, 4), (6, 4), r"advantage must have .* got \(1, 4\)"),
        ((6, 4), (6,), (6, 1), r"mask must be bool of shape \(6, 4\), like log_ratio, got torch.bool of \(6, 1\)"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(name, log_ratio, advantage, mask, message):
    with pytest.raises(ValueError, match=message):
        OBJECTIVES[name]()(torch.zeros(log_ratio), torch.zeros(advantage), torch.ones(mask, dtype=torch.bool))


@every_objective
def test_masks_of_numbers_and_masks_that_keep_nothing_are_refused(name):
    with pytest.raises(ValueError, match=r"mask must be bool .* got torch\.float32"):
        OBJECTIVES[name]()(torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3))
    with pytest.raises(ValueError, match="mask keeps no entry, so there is no loss"):
        OBJECTIVES[name]()(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 3, dtype=torch.bool))


def surrogate(objective, ratio, advantage):
    """Loss, d loss / d ratio and metrics of one row of steps, each with an advantage of its own."""
    ratio = torch.tensor([ratio], dtype=torch.float64).requires_grad_()
    advantage = torch.tensor([advantage], dtype=torch.float64)
    loss, metrics = objective(ratio.log(), advantage, torch.ones_like(ratio, dtype=torch.bool))
    (slope,) = torch.autograd.grad(loss, ratio)
    return loss.item(), slope[0], {name: value.item() for name, value in metrics.items()}


@pytest.mark.parametrize("case", LOSSES, ids=["on policy", "off policy"])
def test_the_clipped_loss_and_its_gradient_are_golden(case):
    loss, slope, _ = surrogate(PPOClip(clip=case["clip_range"]), case["ratio"], case["advantages"])
    assert loss == pytest.approx(case["loss"], abs=1e-12)
    torch.testing.assert_close(slope, torch.tensor(case["dloss_dratio"], dtype=torch.float64))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "stopped"),
    [
        (1.1, 1.0, -1.1, -1.0, 0.0),
        (0.9, -1.0, 0.9, 1.0, 0.0),
        (2.0, 1.0, -1.2, 0.0, 1.0),
        (0.5, -1.0, 0.8, 0.0, 1.0),
        (0.5, 1.0, -0.5, -1.0, 0.0),
        (2.0, -1.0, 2.0, 1.0, 0.0),
    ],
    ids=["inside, gain", "inside, loss", "gain clipped", "loss clipped", "gain to be won back", "loss to be undone"],
)
def test_clipped_surrogate_takes_the_pessimistic_bound(ratio, advantage, loss, slope, stopped):
    found, gradient, metrics = surrogate(PPOClip(clip=0.2), [ratio], [advantage])
    assert found == pytest.approx(loss)
    assert gradient.item() == pytest.approx(slope)
    assert metrics["clip_fraction"] == stopped


@pytest.mark.parametrize(
    ("settings", "bounds"),
    [
        ({"clip": 0.2}, (0.8, 1.2)),
        ({"clip": 0.2, "clip_high": 0.3}, (0.8, 1.3)),
        ({"clip": 0.2, "clip_low": 0.1}, (0.9, 1.2)),
        ({"clip_low": 0.1, "clip_high": 0.3}, (0.9, 1.3)),
    ],
)
def test_each_side_of_the_clip_has_its_own_range(settings, bounds):
    objective = PPOClip(**settings)
    low, high = bounds
    assert surrogate(objective, [5.0], [1.0])[0] == pytest.approx(-high)
    assert surrogate(objective, [0.01], [-1.0])[0] == pytest.approx(low)
    assert objective.bounds == pytest.approx(bounds)


def test_metrics_by_hand():
    """Ratios 1, 1.5, 0.5, 1.2 and one masked 9: the gain at 1.5 and the loss at 0.5 are stopped, the mean is 1.05."""
    log_ratio = torch.tensor([[1.0, 1.5, 0.5, 1.2, 9.0]], dtype=torch.float64).log()
    advantage, mask = torch.tensor([[1.0, 1.0, -1.0, -1.0, 1.0]]), torch.tensor([[True, True, True, True, False]])
    loss, metrics = PPOClip(clip=0.2)(log_ratio, advantage, mask)
    assert loss.item() == pytest.approx(-(1 + 1.2 - 0.8 - 1.2) / 4)
    assert metrics["clip_fraction"].item() == 0.5
    assert metrics["ratio_mean"].item() == pytest.approx(1.05)
    assert metrics["ratio_variance"].item() == pytest.approx((0.5**2 + 0.5**2 + 0.2**2) / 4)
    assert metrics["ratio_max_dev"].item() == pytest.approx(0.5)
    assert "kl" not in metrics


def test_kl_to_the_reference_is_weighted_averaged_over_kept_entries_and_differentiated():
    kl = torch.tensor([[0.1, 0.4], [0.3, float("nan")]], dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[True, True], [True, False]])
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    loss, metrics = PPOClip(kl_weight=0.5)(zeros, torch.zeros(2), mask, StepBatch(kl_reference=kl))
    assert loss.item() == pytest.approx(0.5 * 0.8 / 3)
    assert metrics["kl"].item() == pytest.approx(0.8 / 3)
    (slope,) = torch.autograd.grad(loss, kl)
    torch.testing.assert_close(slope, torch.tensor([[1, 1], [1, 0]], dtype=torch.float64) / 6)


def test_kl_without_a_reference_or_of_another_shape_is_refused():
    zeros, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for context in (None, StepBatch()):
        with pytest.raises(ValueError, match=r"reads context\.kl_reference, which is missing"):
            PPOClip(kl_weight=0.1)(zeros, torch.zeros(2), mask, context)
    with pytest.raises(ValueError, match=r"context\.kl_reference must have the shape \(batch, step\) = \(2, 3\), got \(2,\)"):
        PPOClip(kl_weight=0.1)(zeros, torch.zeros(2), mask, StepBatch(kl_reference=torch.zeros(2)))


def test_the_policy_gradient_does_not_clip():
    loss, slope, metrics = surrogate(PolicyGradient(), [math.e, math.exp(-2)], [2.0, -1.0])
    assert loss == pytest.approx(-(2 * 1 + -1 * -2) / 2)
    torch.testing.assert_close(slope, torch.tensor([-1 / math.e, 0.5 * math.exp(2)], dtype=torch.float64))
    assert metrics["ratio_max_dev"] == pytest.approx(math.e - 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0.0}, "clip must be > 0, got 0.0"),
        ({"clip": float("nan")}, "clip must be > 0, got nan"),
        ({"clip_low": -0.1}, "clip_low must be > 0, got -0.1"),
        ({"clip_high": 0.0}, "clip_high must be > 0, got 0.0"),
        ({"kl_weight": -1.0}, "kl_weight must be >= 0 and finite, got -1.0"),
        ({"kl_weight": float("nan")}, "kl_weight must be >= 0 and finite, got nan"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PPOClip(**settings)


def test_a_stateless_objective_refuses_the_state_of_another():
    PPOClip().load_state_dict({})
    with pytest.raises(ValueError, match=r"PPOClip keeps no state, but the checkpoint holds \['dual'\]"):
        PPOClip().load_state_dict({"dual": 1.0})


def test_the_registry_refuses_names_that_are_taken_and_suggests_names_that_exist():
    with pytest.raises(ValueError, match="the objective 'ppo_clip' is registered already"):
        register_objective("ppo_clip")(PolicyGradient)
    with pytest.raises(KeyError, match="no objective is called 'ppo_clp'; did you mean 'ppo_clip'"):
        OBJECTIVES["ppo_clp"]
    assert "ppo_clp" not in OBJECTIVES
    other = Registry("selector")
    other.register("all")(len)
    assert dict(other) == {"all": len}


def test_a_context_is_cut_to_the_rows_of_a_micro_batch():
    context = StepBatch(kappa=torch.arange(6.0).reshape(3, 2), group_ids=torch.tensor([0, 0, 1]))
    assert context[1:].kappa.tolist() == [[2, 3], [4, 5]]
    assert context[torch.tensor([2])].group_ids.tolist() == [1]
    assert context[1:].reward is None
