"""Drawing, scoring and comparing transitions."""

import math

import pytest
import torch

from flowrl.flow import FlowSDE, Transition


def normal(shape=(2, 3, 4), std=0.5, seed=0, dtype=torch.float32):
    return Transition(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), torch.tensor(std, dtype=dtype))


def test_log_prob_by_hand():
    """z = 1 and z = −2 at std 0.5: −z²/2 − log 0.5 − log(2π)/2 each."""
    step = Transition(torch.zeros(1, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    constant = math.log(2) - 0.5 * math.log(2 * math.pi)
    assert step.log_prob(x, reduction="sum").item() == pytest.approx(-0.5 - 2 + 2 * constant, rel=1e-12)
    assert step.log_prob(x).item() == pytest.approx(-1.25 + constant, rel=1e-12)


def test_every_row_has_a_log_prob_of_its_own():
    step = normal()
    x = step.mean + 0.1
    assert step.log_prob(x).shape == (2,)
    alone = Transition(step.mean[1:], step.std).log_prob(x[1:])
    torch.testing.assert_close(step.log_prob(x)[1:], alone, rtol=0, atol=0)


def test_a_step_without_state_axes_has_one_dimension():
    step = Transition(torch.zeros(3), torch.tensor(1.0))
    torch.testing.assert_close(step.log_prob(torch.zeros(3)), torch.full((3,), -0.5 * math.log(2 * math.pi)))


def test_sum_is_mean_times_the_number_of_dimensions():
    step = normal()
    x = step.mean + 0.3
    torch.testing.assert_close(step.log_prob(x, reduction="sum"), 12 * step.log_prob(x))


def test_kl_with_different_stds_is_the_textbook_one():
    mine, other = normal(std=0.5, dtype=torch.float64), normal(std=0.8, seed=1, dtype=torch.float64)
    shift = (mine.mean - other.mean) ** 2
    expected = math.log(0.8 / 0.5) + (0.25 + shift) / (2 * 0.64) - 0.5
    torch.testing.assert_close(mine.kl(other, reduction="sum"), expected.flatten(1).sum(1))
    torch.testing.assert_close(mine.kl(other), expected.flatten(1).mean(1))


@pytest.mark.parametrize("shift", [1e-6, 1e-4, 1e-2])
def test_kl_of_a_small_shift_survives_float32(shift):
    """torch's kl_divergence computes 1 + shift² − 1, which rounds to 0: a KL penalty would have a gradient but no value."""
    one, other = Transition(torch.zeros(2, 5), torch.tensor(0.5)), Transition(torch.full((2, 5), shift), torch.tensor(0.5))
    torch.testing.assert_close(one.kl(other), torch.full((2,), 2 * shift**2), rtol=1e-5, atol=0)


def test_kl_pulls_the_mean_back_with_the_gradient_of_a_quadratic():
    mean = torch.full((1, 4), 0.3, requires_grad=True)
    Transition(mean, torch.tensor(0.5)).kl(Transition(torch.zeros(1, 4), torch.tensor(0.5))).sum().backward()
    torch.testing.assert_close(mean.grad, torch.full((1, 4), 0.3 / 0.25 / 4))


def test_states_are_scored_as_stored_so_the_ratio_is_one_after_rounding():
    """Rounding to bfloat16 after scoring moves the log-probability by more than the clip range of 1e-4."""
    generator = torch.Generator().manual_seed(0)
    x_t, velocity = torch.randn(4, 64, generator=generator), torch.randn(4, 64, generator=generator)
    step = FlowSDE(noise_level=0.7).transition(velocity, x_t, 0.9, 0.87)
    drawn = step.sample(generator)
    stored = drawn.bfloat16()
    again = FlowSDE(noise_level=0.7).transition(velocity, x_t, 0.9, 0.87)
    assert torch.equal(again.log_prob(stored), step.log_prob(stored))
    assert (step.log_prob(stored) - step.log_prob(drawn)).abs().max() > 1e-4
    assert step.log_prob(stored).dtype == torch.float32


def test_the_same_generator_state_draws_the_same_sample():
    step = normal()
    first, second = (step.sample(torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, step.sample(torch.Generator().manual_seed(6)))


def test_draws_have_the_mean_and_std_of_the_transition():
    step = Transition(torch.full((50000, 1), 2.0), torch.tensor(0.3))
    drawn = step.sample(torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.005)
    assert drawn.std().item() == pytest.approx(0.3, abs=0.005)


def test_one_generator_a_prompt_makes_the_draw_independent_of_the_batch():
    step = normal((4, 3))
    both = step.sample([torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)])
    second = Transition(step.mean[2:], step.std).sample([torch.Generator().manual_seed(2)])
    assert torch.equal(both[2:], second)


def test_a_std_that_does_not_broadcast_over_the_mean_is_refused():
    with pytest.raises(ValueError, match=r"std of shape \(3, 1\) does not broadcast over a mean of shape \(1, 4\)"):
        Transition(torch.zeros(1, 4), torch.ones(3, 1))


def test_a_state_of_another_shape_is_not_scored():
    with pytest.raises(ValueError, match=r"mean's shape \(2, 3, 4\), got \(1, 3, 4\)"):
        normal().log_prob(torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match=r"over the same state, got shapes \(2, 3, 4\) and \(1, 3, 4\)"):
        normal().kl(normal((1, 3, 4)))


def test_an_unknown_reduction_is_refused_with_the_close_match():
    with pytest.raises(ValueError, match="unknown reduction 'men'; did you mean 'mean'"):
        normal().log_prob(torch.zeros(2, 3, 4), reduction="men")
