"""Advantages against golden numbers, hand values and the properties that define them."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.rl import GroupAdvantage, MultiGranularityAdvantage, group_advantage

GOLDEN, CONSTANT = json.loads((Path(__file__).parents[1] / "goldens" / "sde_steps.json").read_text())["advantages"]
ESTIMATORS = [kind(std=std) for kind in (GroupAdvantage, MultiGranularityAdvantage) for std in ("group", "batch")]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: f"{type(e).__name__}-{e.std}")
every_std = pytest.mark.parametrize("std", ["group", "batch", "none"])
rewards_of_a_group = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=12)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def ids(*sizes):
    return torch.cat([torch.full((size,), group) for group, size in enumerate(sizes)])


def golden_rewards():
    """(row, view 1, granularity 2, part 2) of the golden case: HPS and CLIP at strides 1 and 2."""
    parts = [[GOLDEN[f"rewards_{part}"][stride] for stride in "12"] for part in ("hps", "clip")]
    return double(parts).permute(2, 1, 0)[:, None]


@pytest.mark.parametrize("part", ["hps", "clip"])
@pytest.mark.parametrize("stride", ["1", "2"])
def test_one_group_has_the_golden_advantages(part, stride):
    advantage = group_advantage(double(GOLDEN[f"rewards_{part}"][stride]), ids(4))
    torch.testing.assert_close(advantage, double(GOLDEN[f"{part}_lambda{stride}"]), rtol=1e-9, atol=1e-12)


def test_granularities_and_reward_models_integrate_to_the_golden_sum():
    advantage = MultiGranularityAdvantage()(golden_rewards(), ids(4), torch.ones(2))
    torch.testing.assert_close(advantage[:, 0], double(GOLDEN["hps_plus_clip_clamped5"]), rtol=1e-9, atol=1e-12)
    hps_only = MultiGranularityAdvantage()(golden_rewards(), ids(4), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(hps_only[:, 0], double(GOLDEN["hps_sum"]), rtol=1e-9, atol=1e-12)


def test_the_mean_over_granularities_is_the_sum_over_their_number():
    advantage = MultiGranularityAdvantage(integrate="mean")(golden_rewards(), ids(4), torch.tensor([1.0, 2.0]))
    terms = {name: double(GOLDEN[name]) for name in ("hps_lambda1", "hps_lambda2", "clip_lambda1", "clip_lambda2")}
    expected = (terms["hps_lambda1"] + terms["hps_lambda2"]) / 2 + 2 * (terms["clip_lambda1"] + terms["clip_lambda2"]) / 2
    torch.testing.assert_close(advantage[:, 0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("std", "ddof", "expected"),
    [
        ("group", 1, [-1 / math.sqrt(2), 1 / math.sqrt(2), -1, 0, 1]),
        ("group", 0, [-1, 1, -math.sqrt(1.5), 0, math.sqrt(1.5)]),
        ("none", 1, [-1, 1, -3, 0, 3]),
        ("batch", 1, [value / math.sqrt(12.5) for value in (-1, 1, -3, 0, 3)]),
        ("batch", 0, [value / math.sqrt(10) for value in (-1, 1, -3, 0, 3)]),
    ],
)
def test_ragged_groups_by_hand(std, ddof, expected):
    """Groups (1, 3) and (4, 7, 10): means 2 and 7, unbiased variances 2 and 9. The batch: mean 5, squares 16 + 4 + 1 + 4 + 25 = 50."""
    rewards = double([1, 3, 4, 7, 10])
    torch.testing.assert_close(group_advantage(rewards, ids(2, 3), std, ddof, eps=0), double(expected))


def test_batch_std_of_one_group_is_group_std():
    rewards = torch.rand(7, dtype=torch.float64)
    torch.testing.assert_close(group_advantage(rewards, ids(7), "batch"), group_advantage(rewards, ids(7), "group"))


def test_epsilon_is_added_to_the_deviation():
    advantage = group_advantage(double([0.0, 1.0]), ids(2), eps=0.5)
    assert advantage[1].item() == pytest.approx(0.5 / (math.sqrt(0.5) + 0.5))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32), (torch.int64, torch.float32)],
)
def test_the_result_is_float32_or_wider(dtype, expected):
    assert group_advantage(torch.tensor([0, 1, 2]).to(dtype), ids(3)).dtype == expected


@given(size=st.integers(2, 24), row=st.integers(0, 23))
def test_one_winner_reaches_the_bound_of_its_group_size(size, row):
    rewards = torch.zeros(size, dtype=torch.float64)
    rewards[row % size] = 1
    assert group_advantage(rewards, ids(size), eps=0).max().item() == pytest.approx((size - 1) / math.sqrt(size))


@given(rewards=rewards_of_a_group)
def test_no_advantage_exceeds_the_bound_of_the_group_size(rewards):
    size = len(rewards)
    advantage = group_advantage(double(rewards), ids(size))
    assert advantage.abs().max().item() <= (size - 1) / math.sqrt(size) + 1e-9
    assert advantage.sum().item() == pytest.approx(0, abs=1e-6)


@every_std
@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_group_advantage_ignores_shift_and_scale(std, shift, scale):
    rewards = double([0.3, 0.1, 0.9, 0.4, 2.0, 2.5, 2.25])
    plain, moved = (group_advantage(r, ids(4, 3), std, eps=0) for r in (rewards, scale * rewards + shift))
    torch.testing.assert_close(moved, plain * scale if std == "none" else plain, rtol=1e-9, atol=1e-9)


@every_std
@given(order=st.permutations(range(7)))
def test_permuting_rows_permutes_advantages(std, order):
    rewards, groups = double([0.3, 0.1, 0.9, 0.4, 2.0, 2.5, 2.25]), ids(4, 3)
    permuted = group_advantage(rewards[list(order)], groups[list(order)], std)
    torch.testing.assert_close(permuted, group_advantage(rewards, groups, std)[list(order)], rtol=1e-12, atol=1e-12)


@every_std
@given(labels=st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3, unique=True))
def test_names_of_groups_do_not_matter(std, labels):
    rewards, groups = torch.rand(9, dtype=torch.float64), ids(4, 3, 2)
    renamed = group_advantage(rewards, torch.tensor(labels)[groups], std)
    assert torch.equal(renamed, group_advantage(rewards, groups, std))


def test_a_group_is_normalised_on_its_own():
    rewards = torch.rand(10, dtype=torch.float64)
    apart = torch.cat([group_advantage(rewards[:6], ids(6)), group_advantage(rewards[6:], ids(4))])
    torch.testing.assert_close(group_advantage(rewards, ids(6, 4)), apart, rtol=1e-12, atol=1e-12)


@every_std
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(value=st.floats(-1e4, 1e4, width=32), size=st.integers(2, 24))
def test_equal_rewards_have_exactly_no_advantage(std, dtype, value, size):
    """In float32 the rounded mean of 0.1, 0.1, 0.1, … differs from 0.1, and dividing by a deviation of that size gives ±0.8."""
    rewards = torch.cat([torch.full((size,), value, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)])
    advantage = group_advantage(rewards, ids(size, 2), std, eps=0)
    assert (advantage[:size] == 0).all()
    assert (advantage[size:] != 0).all()


def test_a_batch_of_equal_rewards_has_no_advantage_under_any_std():
    assert group_advantage(double(CONSTANT["rewards"]), ids(4)).tolist() == CONSTANT["adv"]
    assert (group_advantage(torch.full((6,), 22.7), ids(3, 3), "batch", eps=0) == 0).all()


def test_tiny_differences_are_not_taken_for_equal_rewards():
    advantage = group_advantage(double([1.0, 1.0 + 1e-12]), ids(2), eps=0)
    assert advantage[1].item() == pytest.approx(math.sqrt(0.5))


@every_estimator
def test_equal_rows_have_exactly_no_advantage_whatever_the_weights(estimator):
    row = torch.tensor([0.1, 0.7, 0.3, 0.9, 0.2, 0.4]).reshape(1, 1, 2, 3)
    advantage = estimator(row.expand(7, 5, 2, 3), ids(7), torch.tensor([0.3, 0.3, 0.7]))
    assert advantage.shape == (7, 5)
    assert (advantage == 0).all()


def test_parts_are_summed_before_group_normalisation_and_after_multi_granular():
    """Rewards 0/1 and 0/100 in opposite order: summed first the large part decides, normalised first they cancel."""
    rewards = double([[0, 100], [1, 0]])[:, None, None, :]
    weights = torch.ones(2)
    assert GroupAdvantage()(rewards, ids(2), weights)[0, 0].item() == pytest.approx(math.sqrt(0.5))
    assert MultiGranularityAdvantage()(rewards, ids(2), weights).abs().max() < 1e-8


@every_estimator
def test_weights_count_and_may_be_negative(estimator):
    rewards = torch.rand(6, 2, 3, 2, dtype=torch.float64)
    first = estimator(rewards, ids(6), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(first, estimator(rewards[..., :1], ids(6), torch.ones(1)))
    torch.testing.assert_close(estimator(rewards, ids(6), torch.tensor([-1.0, 0.0])), -first)


def test_group_advantage_of_a_single_part_is_that_function():
    rewards = torch.rand(8, dtype=torch.float64)
    advantage = GroupAdvantage(std="batch", ddof=0, eps=1e-4)(rewards[:, None, None, None], ids(5, 3), torch.ones(1))
    torch.testing.assert_close(advantage[:, 0], group_advantage(rewards, ids(5, 3), "batch", 0, 1e-4))
    multi = MultiGranularityAdvantage(std="none")(rewards[:, None, None, None], ids(5, 3), torch.ones(1))
    torch.testing.assert_close(multi[:, 0], group_advantage(rewards, ids(5, 3), "none"))


def test_group_advantage_averages_granularities_before_it_normalises():
    rewards = double([[0, 4], [2, 10]])[:, None, :, None].expand(2, 1, 2, 1)
    three = torch.cat([rewards, double([[1, 1]]).reshape(1, 1, 2, 1)])
    expected = group_advantage(double([2, 6, 1]), ids(3))
    torch.testing.assert_close(GroupAdvantage()(three, ids(3), torch.ones(1))[:, 0], expected)
    unscaled = GroupAdvantage(std="none")(three, ids(3), torch.ones(1))[:, 0]
    torch.testing.assert_close(unscaled, double([-1, 3, -2]))


@every_estimator
def test_every_view_is_normalised_on_its_own(estimator):
    """A view is one stochastic step of G²RPO: rewards of one step say nothing about another."""
    rewards = torch.rand(6, 3, 2, 2, dtype=torch.float64)
    rewards[:, 1] *= 100
    together = estimator(rewards, ids(4, 2), torch.ones(2))
    for view in range(3):
        torch.testing.assert_close(together[:, view], estimator(rewards[:, view : view + 1], ids(4, 2), torch.ones(2))[:, 0])


def test_the_clamp_comes_last():
    rewards = torch.zeros(12, 1, 2, 2, dtype=torch.float64)
    rewards[0] = 1
    bound = 11 / math.sqrt(12)  # 3.175 for each of the four terms
    estimator = MultiGranularityAdvantage(clamp=None)
    assert estimator(rewards, ids(12), torch.ones(2))[0, 0].item() == pytest.approx(4 * bound, rel=1e-6)
    assert MultiGranularityAdvantage()(rewards, ids(12), torch.ones(2))[0, 0].item() == 5
    assert MultiGranularityAdvantage(clamp=0.2)(rewards, ids(12), torch.ones(2))[1, 0].item() == -0.2
    assert GroupAdvantage(clamp=1.0)(rewards, ids(12), torch.ones(2))[0, 0].item() == 1


@every_estimator
def test_advantages_carry_no_graph(estimator):
    rewards = torch.rand(4, 1, 1, 1, requires_grad=True)
    assert not estimator(rewards, ids(4), torch.ones(1)).requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_of_rewards_that_are_not_finite_are_named(bad):
    rewards = torch.rand(6)
    rewards[[1, 4]] = bad
    with pytest.raises(ValueError, match=r"rows \[1, 4\] are not"):
        group_advantage(rewards, ids(3, 3))
    with pytest.raises(ValueError, match=r"rows \[1, 4\] are not"):
        GroupAdvantage()(rewards[:, None, None, None].expand(6, 2, 1, 1), ids(3, 3), torch.ones(1))


def test_many_bad_rows_are_counted():
    with pytest.raises(ValueError, match=r"rows \[0, 1, 2, 3, 4, 5, 6, 7\] and 12 more are not"):
        group_advantage(torch.full((20,), torch.nan), ids(20))


def test_a_group_of_one_is_named_and_refused():
    with pytest.raises(ValueError, match=r"at least two members .* groups \[7\] have one; raise group_size"):
        group_advantage(torch.rand(3), torch.tensor([3, 3, 7]))


@pytest.mark.parametrize(
    ("rewards", "groups", "message"),
    [
        (torch.rand(4, 1), ids(4), r"rewards must have the shape \(batch,\), got \(4, 1\)"),
        (torch.rand(4), ids(3), r"group_ids must have the shape \(4,\), one a reward row, got \(3,\)"),
        (torch.rand(4), ids(4)[:, None], r"group_ids must have the shape \(4,\).* got \(4, 1\)"),
        (torch.rand(4), torch.zeros(4), r"group_ids must be integers, got torch.float32"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(rewards, groups, message):
    with pytest.raises(ValueError, match=message):
        group_advantage(rewards, groups)


@every_estimator
def test_estimators_check_their_axes_and_weights(estimator):
    rewards = torch.rand(4, 1, 2, 3)
    with pytest.raises(ValueError, match=r"shape \(row, view, granularity, part\), got \(4, 1, 2\)"):
        estimator(rewards[..., 0], ids(4), torch.ones(3))
    with pytest.raises(ValueError, match=r"weights must have the shape \(3,\), one a reward part, got \(2,\)"):
        estimator(rewards, ids(4), torch.ones(2))
    with pytest.raises(ValueError, match="weights must be finite, got"):
        estimator(rewards, ids(4), torch.tensor([1.0, torch.nan, 1.0]))


@pytest.mark.parametrize("kind", [GroupAdvantage, MultiGranularityAdvantage])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": "groups"}, "std must be one of .*'group', 'batch', 'none'.* got 'groups'"),
        ({"ddof": 2}, r"ddof must be 0 \(population\) or 1 \(unbiased\), got 2"),
        ({"eps": -1e-8}, "eps must be >= 0, got -1e-08"),
        ({"eps": float("nan")}, "eps must be >= 0, got nan"),
        ({"clamp": 0.0}, "clamp must be > 0, got 0.0; for no limit use None"),
    ],
)
def test_wrong_options_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_an_unknown_integration_is_refused():
    with pytest.raises(ValueError, match=r"integrate must be one of .*'sum', 'mean'.* got 'max'"):
        MultiGranularityAdvantage(integrate="max")
