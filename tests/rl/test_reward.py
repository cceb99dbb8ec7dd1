"""Batches of named rewards."""

import pytest
import torch

from flowrl.rl import RewardBatch


def batch(rows=3):
    return RewardBatch({"beauty": torch.arange(float(rows)), "truth": -torch.arange(float(rows))})


def test_stack_puts_parts_side_by_side_in_the_order_asked_for():
    assert batch().stack(["truth", "beauty"]).tolist() == [[0, 0], [-1, 1], [-2, 2]]
    assert batch().stack(["beauty"]).shape == (3, 1)
    assert len(batch()) == 3


def test_cat_joins_samples():
    joined = RewardBatch.cat([batch(2), batch(1)])
    assert joined.parts["beauty"].tolist() == [0, 1, 0]
    assert joined.parts["truth"].tolist() == [0, -1, 0]


def test_an_unknown_part_is_named_with_the_close_match():
    with pytest.raises(ValueError, match="no part 'beuty'; did you mean 'beauty'"):
        batch().stack(["truth", "beuty"])


@pytest.mark.parametrize(
    "parts",
    [{}, {"a": torch.zeros(2), "b": torch.zeros(3)}, {"a": torch.zeros(2, 1)}, {"a": torch.tensor(1.0)}],
    ids=["none", "ragged", "2-D", "0-D"],
)
def test_parts_must_be_one_number_a_sample(parts):
    with pytest.raises(ValueError, match=r"at least one part|shape \(batch,\), the same for all"):
        RewardBatch(parts)
