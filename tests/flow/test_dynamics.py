"""What holds for every dynamics at all times and noise levels, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.flow import CPS, ODE, DanceSDE, FlowSDE, shifted_times

STOCHASTIC = [FlowSDE, DanceSDE, CPS]
EVERY = [ODE(), FlowSDE(noise_level=0.7), DanceSDE(noise_level=0.3), CPS(noise_level=0.7)]
every_dynamics = pytest.mark.parametrize("dynamics", EVERY, ids=lambda d: type(d).__name__)
stochastic_class = pytest.mark.parametrize("kind", STOCHASTIC, ids=lambda kind: kind.__name__)
inner_times = st.tuples(st.floats(0.01, 0.99), st.floats(0.0, 0.99)).map(lambda pair: (pair[0], pair[0] * pair[1]))
levels = st.floats(0.05, 0.99)


def states(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64), torch.randn(shape, generator=generator, dtype=torch.float64)


def coefficients(dynamics, t, s):
    """(a, b, std) of x_s = a·x_t + b·v + std·noise, read off two unit vectors."""
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    of_state = dynamics.transition(zero, one, t, s)
    return of_state.mean.item(), dynamics.transition(one, zero, t, s).mean.item(), of_state.std.max().item()


@stochastic_class
@given(times=inner_times)
def test_without_noise_every_sde_is_the_euler_step(kind, times):
    t, s = times
    velocity, x_t = states(2, 3)
    step = kind(noise_level=1e-9).transition(velocity, x_t, t, s)
    torch.testing.assert_close(step.mean, x_t + (s - t) * velocity, rtol=0, atol=1e-12)
    assert step.std.max() < 1e-7


@given(level=levels, steps=st.integers(2, 60), shift=st.floats(0.3, 8))
def test_first_step_of_flow_sde_has_std_noise_level_on_any_grid(level, steps, shift):
    grid = shifted_times(steps=steps, shift=shift)
    a, b, std = coefficients(FlowSDE(noise_level=level), 1.0, float(grid[1]))
    assert std == pytest.approx(level, rel=1e-12)
    assert a == pytest.approx(1 - level**2 / 2, rel=1e-12)
    assert b == pytest.approx(float(grid[1]) - 1, rel=1e-9)


@given(times=inner_times, level=levels)
def test_flow_sde_scales_the_velocity_by_one_plus_half_the_squared_noise_level(times, level):
    t, s = times
    _, b, _ = coefficients(FlowSDE(noise_level=level), t, s)
    assert b == pytest.approx((s - t) * (1 + level**2 / 2), rel=1e-9)


@given(times=inner_times, level=levels)
def test_dance_sde_is_flow_sde_with_a_noise_level_that_follows_the_time(times, level):
    t, s = times
    diffusion = level * math.sqrt(t / (1 - t))
    dance = coefficients(DanceSDE(noise_level=diffusion), t, s)
    assert dance == pytest.approx(coefficients(FlowSDE(noise_level=level), t, s), rel=1e-9, abs=1e-12)


@given(times=inner_times, level=levels)
def test_cps_keeps_the_coefficients_of_the_path(times, level):
    """Data weight 1 − s; the noise kept and the noise drawn have weights whose squares sum to s²."""
    t, s = times
    a, b, std = coefficients(CPS(noise_level=level), t, s)
    data_weight = (1 - t) * a - b  # of x_t = (1 − t)·data + t·noise and v = noise − data
    noise_weight = t * a + b
    assert data_weight == pytest.approx(1 - s, rel=1e-9)
    assert noise_weight**2 + std**2 == pytest.approx(s**2, rel=1e-9, abs=1e-15)
    assert std == pytest.approx(s * math.sin(level * math.pi / 2), rel=1e-9, abs=1e-15)


@every_dynamics
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.6, 0.35), (0.2, 0.0)])
def test_scalar_batch_and_per_token_times_give_the_same_transition(dynamics, t, s):
    velocity, x_t = states(3, 4, 2)
    scalar = dynamics.transition(velocity, x_t, t, s)
    for shape in [(), (3,), (3, 4)]:
        filled = dynamics.transition(velocity, x_t, torch.full(shape, t, dtype=torch.float64), torch.full(shape, s, dtype=torch.float64))
        torch.testing.assert_close(filled.mean, scalar.mean, rtol=0, atol=0)
        torch.testing.assert_close(filled.std.expand_as(x_t), scalar.std.expand_as(x_t), rtol=0, atol=0)


@every_dynamics
def test_tokens_at_times_of_their_own_step_as_if_alone(dynamics):
    velocity, x_t = states(2, 3, 5)
    t = torch.tensor([[1.0, 0.7, 0.3], [0.9, 0.5, 0.1]], dtype=torch.float64)
    s = torch.tensor([[0.8, 0.6, 0.0], [0.85, 0.2, 0.05]], dtype=torch.float64)
    together = dynamics.transition(velocity, x_t, t, s)
    for row in range(2):
        for token in range(3):
            place = (slice(row, row + 1), slice(token, token + 1))
            alone = dynamics.transition(velocity[place], x_t[place], float(t[row, token]), float(s[row, token]))
            torch.testing.assert_close(together.mean[place], alone.mean)
            torch.testing.assert_close(together.std.expand_as(x_t)[place], alone.std.expand_as(alone.mean))


@every_dynamics
def test_times_of_different_shapes_meet_row_by_row(dynamics):
    velocity, x_t = states(2, 2, 5)
    tokens, rows = torch.tensor([[0.9, 0.5], [0.9, 0.9]]), torch.tensor([0.4, 0.8])  # token by token, 0.5 would meet 0.8
    mixed = dynamics.transition(velocity, x_t, tokens, rows)
    filled = dynamics.transition(velocity, x_t, tokens, rows[:, None].expand(2, 2))
    torch.testing.assert_close(mixed.mean, filled.mean, rtol=0, atol=0)
    with pytest.raises(ValueError, match="times must satisfy 0 <= s <= t <= 1"):
        dynamics.transition(velocity, x_t, tokens.flip(0), rows)


@every_dynamics
@pytest.mark.parametrize("t", [1.0, 0.4, 0.0])
def test_a_step_of_no_length_leaves_the_state_where_it_is(dynamics, t):
    velocity, x_t = states(2, 3)
    step = dynamics.transition(velocity, x_t, t, t)
    torch.testing.assert_close(step.mean, x_t, rtol=0, atol=0)
    assert step.std.max() == 0


@every_dynamics
def test_a_bfloat16_network_steps_in_float32(dynamics):
    velocity, x_t = (tensor.bfloat16() for tensor in states(2, 3))
    step = dynamics.transition(velocity, x_t, 0.7, 0.6)
    exact = dynamics.transition(velocity.float(), x_t.float(), 0.7, 0.6)
    assert step.mean.dtype == step.std.dtype == torch.float32
    torch.testing.assert_close(step.mean, exact.mean, rtol=0, atol=0)


@stochastic_class
@pytest.mark.parametrize("level", [0.0, -1.0, float("nan"), float("inf")])
def test_a_noise_level_that_is_not_positive_and_finite_is_refused(kind, level):
    with pytest.raises(ValueError, match=rf"noise_level must be > 0 and finite, got {level}; for noise-free"):
        kind(noise_level=level)


def test_cps_refuses_to_replace_more_than_all_noise():
    assert CPS(noise_level=1.0).noise_level == 1
    with pytest.raises(ValueError, match=r"at most 1 .*got 1\.01"):
        CPS(noise_level=1.01)


@every_dynamics
@pytest.mark.parametrize(("t", "s"), [(0.5, 0.6), (1.1, 0.5), (0.5, -0.1), (float("nan"), 0.5), (0.5, float("nan"))])
def test_times_out_of_order_or_range_are_refused(dynamics, t, s):
    velocity, x_t = states(2, 3)
    for wrap in (float, torch.tensor):
        with pytest.raises(ValueError, match="times must satisfy 0 <= s <= t <= 1"):
            dynamics.transition(velocity, x_t, wrap(t), wrap(s))


@every_dynamics
def test_one_row_out_of_order_is_refused(dynamics):
    velocity, x_t = states(2, 3)
    with pytest.raises(ValueError, match=r"s = \[0\.4.*, 0\.6"):
        dynamics.transition(velocity, x_t, torch.tensor([0.5, 0.5]), torch.tensor([0.4, 0.6]))


@every_dynamics
def test_shapes_that_would_broadcast_silently_are_refused(dynamics):
    velocity, x_t = states(2, 3)
    with pytest.raises(ValueError, match=r"same shape, got \(1, 3\) and \(2, 3\)"):
        dynamics.transition(velocity[:1], x_t, 0.7, 0.6)
    with pytest.raises(ValueError, match=r"a time of shape \(3,\) does not fit a state of shape \(2, 3\)"):
        dynamics.transition(velocity, x_t, torch.full((3,), 0.7), 0.6)


@pytest.mark.parametrize(("dynamics", "s"), [(ODE(), 0.5), (CPS(noise_level=0.7), 0.0)], ids=["ODE", "last step of CPS"])
def test_a_noise_free_step_can_be_drawn_but_not_scored(dynamics, s):
    velocity, x_t = states(2, 3)
    step = dynamics.transition(velocity, x_t, 0.7, s)
    torch.testing.assert_close(step.sample(), step.mean, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"noise-free transition .* no density"):
        step.log_prob(step.mean)
    with pytest.raises(ValueError, match=r"noise-free transition .* no density"):
        step.kl(step)


@stochastic_class
def test_gradient_flows_to_the_velocity_without_nan_when_some_rows_do_not_move(kind):
    velocity, x_t = states(2, 3)
    velocity.requires_grad_()
    t = torch.tensor([0.7, 0.7], dtype=torch.float64)
    step = kind(noise_level=0.5).transition(velocity, x_t, t, torch.tensor([0.6, 0.7], dtype=torch.float64))
    step.mean.sum().backward()
    assert torch.isfinite(velocity.grad).all()
    assert (velocity.grad[1] == 0).all()
