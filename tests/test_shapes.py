"""Times that broadcast and noise that is reproducible."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.shapes import expand_time, float_dtype, randn, seeded_generator, spread, state_mean, state_sum

LIKE = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(("shape", "expected"), [((), (1, 1, 1)), ((2,), (2, 1, 1)), ((2, 3), (2, 3, 1)), ((2, 3, 4), (2, 3, 4))])
def test_times_of_every_prefix_get_trailing_axes(shape, expected):
    t = torch.rand(shape)
    assert expand_time(t, LIKE).shape == expected
    torch.testing.assert_close(expand_time(t, LIKE).flatten(), t.flatten())


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (2, 4), (1, 3), (3, 4), (2, 3, 4, 1)])
def test_times_that_are_no_prefix_are_refused_even_where_they_would_broadcast(shape):
    with pytest.raises(ValueError, match="does not fit a state of shape"):
        expand_time(torch.zeros(shape), LIKE)


@pytest.mark.parametrize(
    ("time", "state", "expected"),
    [
        (torch.tensor(0.5), torch.bfloat16, torch.float32),
        (torch.tensor(0.5, dtype=torch.bfloat16), torch.bfloat16, torch.float32),
        (torch.tensor(1), torch.float32, torch.float32),
        (0.5, torch.float16, torch.float32),
        (0.5, torch.float64, torch.float64),
        (torch.tensor(0.5, dtype=torch.float64), torch.float32, torch.float64),
    ],
)
def test_times_are_float32_at_least(time, state, expected):
    assert expand_time(time, LIKE.to(state)).dtype == expected


def test_a_python_number_keeps_the_precision_of_the_state():
    assert expand_time(0.1, LIKE.double()).item() == 0.1


def test_the_dtype_to_compute_in_is_the_widest():
    assert float_dtype() == torch.float32
    assert float_dtype(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bfloat16)) == torch.float32
    assert float_dtype(torch.zeros(1), torch.zeros(1, dtype=torch.float64)) == torch.float64


def test_one_generator_draws_what_torch_draws():
    drawn = randn((3, 2), torch.Generator().manual_seed(4), device="cpu")
    assert torch.equal(drawn, torch.randn((3, 2), generator=torch.Generator().manual_seed(4)))


def test_without_a_generator_torch_s_global_one_is_used():
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    assert torch.equal(randn((4,), None, device="cpu"), expected)


def test_a_sequence_of_generators_fills_one_block_each():
    drawn = randn((6, 2), [seeded_generator(i) for i in range(3)], device="cpu")
    for i in range(3):
        assert torch.equal(drawn[2 * i : 2 * i + 2], randn((2, 2), seeded_generator(i), device="cpu"))


@pytest.mark.parametrize("count", [0, 4])
def test_rows_that_do_not_split_evenly_are_refused(count):
    with pytest.raises(ValueError, match=rf"6 rows cannot be split evenly over {count} generators"):
        randn((6, 2), [seeded_generator(i) for i in range(count)], device="cpu")


@given(key=st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_a_key_always_gives_the_same_generator(key):
    assert seeded_generator(*key).initial_seed() == seeded_generator(*key).initial_seed()


def test_neighbouring_and_permuted_keys_give_unrelated_generators():
    keys = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)] + [(a, b) for a in range(10) for b in range(10)]
    assert len({seeded_generator(*key).initial_seed() for key in keys}) == len(keys)
    noise = torch.stack([randn((64,), seeded_generator(0, k), device="cpu") for k in range(50)])
    correlation = torch.corrcoef(noise) - torch.eye(50)
    assert correlation.abs().max() < 0.6


def test_reductions_are_over_all_axes_but_the_first():
    x = torch.arange(24.0).reshape(2, 3, 4)
    torch.testing.assert_close(state_mean(x), torch.tensor([5.5, 17.5]))
    torch.testing.assert_close(state_sum(x), torch.tensor([66.0, 210.0]))
    torch.testing.assert_close(state_mean(x[:, 0, 0]), x[:, 0, 0])
    torch.testing.assert_close(state_sum(x[:, 0, 0]), x[:, 0, 0])


@pytest.mark.parametrize(
    ("length", "count", "expected"), [(81, 4, [0, 27, 53, 80]), (5, 3, [0, 2, 4]), (5, 1, [2]), (1, 1, [0]), (3, 8, [0, 1, 2])]
)
def test_positions_are_spread_from_the_first_to_the_last(length, count, expected):
    assert spread(length, count) == expected
