"""A condition behaves as one tensor does."""

import pytest
import torch

from flowrl.flow import Condition


def condition(rows=3):
    return Condition({"text": torch.arange(rows * 2.0).reshape(rows, 2), "id": torch.arange(rows)})


@pytest.mark.parametrize("rows", [[2, 0], torch.tensor([2, 0]), torch.tensor([False, True, True]), slice(1, None)], ids=str)
def test_selecting_rows_selects_them_in_every_tensor(rows):
    picked = condition()[rows]
    index = torch.arange(3)[rows]
    assert picked.tensors["id"].tolist() == index.tolist()
    assert torch.equal(picked.tensors["text"], condition().tensors["text"][index])
    assert len(picked) == len(index)


@pytest.mark.parametrize("rows", [[2, 0], torch.tensor([2, 0]), slice(1, None)], ids=str)
def test_an_unconditional_condition_has_rows_too(rows):
    assert len(Condition(rows=3)) == 3
    assert len(Condition(rows=3)[rows]) == 2
    assert len(Condition(rows=3).repeat(4)) == 12
    assert len(Condition.cat([Condition(rows=3), Condition(rows=2)])) == 5
    assert len(Condition(rows=3).to(torch.float64)) == 3


def test_repeating_keeps_the_copies_of_a_row_together():
    assert condition().repeat(2).tensors["id"].tolist() == [0, 0, 1, 1, 2, 2]


def test_cat_puts_rows_behind_each_other():
    joined = Condition.cat([condition()[[2]], condition()])
    assert joined.tensors["id"].tolist() == [2, 0, 1, 2]
    assert joined.tensors["text"].shape == (4, 2)


def test_casting_leaves_integers_alone():
    cast = condition().to(torch.bfloat16)
    assert cast.tensors["text"].dtype == torch.bfloat16
    assert cast.tensors["id"].dtype == torch.int64
    assert condition().to("cpu").tensors["text"].device.type == "cpu"


def test_tensors_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"must share their first axis, got \{'a': 2, 'b': 3\}"):
        Condition({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match="must share their first axis"):
        Condition({"a": torch.zeros(2)}, rows=3)


def test_conditions_with_other_names_do_not_join():
    with pytest.raises(ValueError, match=r"must have the same names, got \[\['id', 'text'\], \['id'\]\]"):
        Condition.cat([condition(), Condition({"id": torch.zeros(1)})])
    with pytest.raises(ValueError, match="must have the same names"):
        Condition.cat([])
