"""The order of prompts."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.rl import UniformPrompts


@given(prompts=st.integers(1, 20), count=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_every_prompt_comes_once_an_epoch_whatever_the_count(prompts, count, seed):
    sampler = UniformPrompts(prompts_count=prompts, seed=seed)
    drawn = list(itertools.chain.from_iterable(sampler.draw(update, count) for update in range(2 * prompts)))
    for epoch in range(len(drawn) // prompts):
        assert sorted(drawn[epoch * prompts : (epoch + 1) * prompts]) == list(range(prompts))
    assert all(len(sampler.draw(update, count)) == count for update in range(3))


def test_a_draw_depends_on_the_update_alone_and_not_on_earlier_draws():
    sampler, resumed = UniformPrompts(prompts_count=50, seed=3), UniformPrompts(prompts_count=50, seed=3)
    walked = [sampler.draw(update, 8) for update in range(20)]
    resumed.load_state_dict(sampler.state_dict())
    assert [resumed.draw(update, 8) for update in (19, 3, 3)] == [walked[19], walked[3], walked[3]]


def test_epochs_and_seeds_have_orders_of_their_own():
    sampler = UniformPrompts(prompts_count=30, seed=0)
    orders = [sampler.draw(epoch, 30) for epoch in range(5)] + [UniformPrompts(prompts_count=30, seed=1).draw(0, 30)]
    assert len({tuple(order) for order in orders}) == 6
    assert orders[0] != list(range(30))


def test_every_prompt_is_equally_likely_to_come_first():
    first = [UniformPrompts(prompts_count=4, seed=seed).draw(0, 1)[0] for seed in range(2000)]
    counts = torch.bincount(torch.tensor(first), minlength=4)
    assert ((counts - 500).abs() < 100).all()  # 5 standard deviations


def test_rewards_change_nothing():
    sampler = UniformPrompts(prompts_count=5)
    before = sampler.draw(1, 3)
    sampler.observe(before, torch.ones(3, 4))
    assert sampler.draw(1, 3) == before
    assert all(isinstance(index, int) for index in before)


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="prompts_count must be >= 1, got 0; is the prompt file empty"):
        UniformPrompts(prompts_count=0)


@pytest.mark.parametrize(("update", "count"), [(-1, 4), (0, 0)])
def test_draws_of_nothing_or_from_the_past_are_refused(update, count):
    with pytest.raises(ValueError, match=f"got update={update}, count={count}"):
        UniformPrompts(prompts_count=5).draw(update, count)
