"""Prompts of different lengths in one batch, and latents scaled per channel."""

from types import SimpleNamespace

import pytest
import torch

from flowrl.models.latents import channel_scaled
from flowrl.models.padding import pad_tokens, trim_tokens, valid_tokens

TOKENS = torch.arange(1.0, 13.0).reshape(2, 3, 2)
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_padded_rows_are_zero_and_masked_beyond_what_was_given():
    tokens, mask = pad_tokens(TOKENS, MASK, 5)
    assert torch.equal(tokens[:, :3], TOKENS)
    assert not tokens[:, 3:].any()
    assert mask.tolist() == [[True, True, False, False, False], [True, False, False, False, False]]


def test_without_a_mask_all_given_tokens_count():
    tokens, mask = pad_tokens(TOKENS, None, 4)
    assert tokens.shape == (2, 4, 2)
    assert mask.tolist() == [[True, True, True, False]] * 2


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match=r"prompts of 3 tokens do not fit into max_sequence_length=2; raise it"):
        pad_tokens(TOKENS, None, 2)


@pytest.mark.parametrize(("rows", "longest"), [([0, 1], 2), ([1], 1)])
def test_trimming_leaves_the_longest_prompt_of_the_batch(rows, longest):
    tokens, mask = trim_tokens(*(x[rows] for x in pad_tokens(TOKENS, MASK, 5)))
    assert torch.equal(tokens, TOKENS[rows, :longest])
    assert torch.equal(mask, MASK[rows, :longest].bool())


def test_one_token_is_left_of_rows_without_any():
    tokens, mask = trim_tokens(TOKENS, torch.zeros(2, 3, dtype=torch.bool))
    assert tokens.shape == (2, 1, 2)
    assert mask.tolist() == [[False], [False]]


def test_columns_in_the_middle_stay_where_a_later_token_counts():
    tokens, mask = trim_tokens(TOKENS, torch.tensor([[True, False, True], [True, False, False]]))
    assert torch.equal(tokens, TOKENS)
    assert mask.tolist() == [[True, False, True], [True, False, False]]


def test_valid_tokens_are_each_rows_own():
    rows = valid_tokens(TOKENS, MASK.bool())
    assert [row.tolist() for row in rows] == [[[1.0, 2.0], [3.0, 4.0]], [[7.0, 8.0]]]


@pytest.mark.parametrize("trailing", [(), (1, 1), (1, 1, 1)], ids=["no axes", "picture", "video"])
def test_every_channel_is_scaled_by_its_own_numbers(trailing):
    config = SimpleNamespace(latents_mean=[1.0, -1.0], latents_std=[2.0, 10.0])
    scaled = channel_scaled(torch.tensor([[3.0, 4.0]]).reshape(1, 2, *trailing), config)
    assert scaled.flatten().tolist() == [7.0, 39.0]
    assert scaled.shape == (1, 2, *trailing)
