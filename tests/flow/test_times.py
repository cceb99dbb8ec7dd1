"""Grids of noise levels, against hand values and against diffusers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.flow import dynamic_shift, shift_time, shifted_times


def test_shift_by_hand():
    assert shift_time(torch.tensor(0.5), 3.0).item() == pytest.approx(1.5 / 2)
    assert shift_time(torch.tensor(0.5), 1.0).item() == 0.5


@given(steps=st.integers(1, 100), shift=st.floats(0.1, 20))
def test_grids_fall_from_exactly_one_to_exactly_zero(steps, shift):
    grid = shifted_times(steps=steps, shift=shift)
    assert grid.shape == (steps + 1,)
    assert grid[0] == 1
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()


@given(first=st.floats(0.2, 5), second=st.floats(0.2, 5))
def test_shifting_twice_is_shifting_by_the_product(first, second):
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_time(shift_time(t, first), second), shift_time(t, first * second))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [4, 16])
def test_a_fixed_shift_is_the_grid_of_diffusers_flow_scheduler(steps, shift):
    """diffusers' own grid stops at its smallest training noise level before 0, so the sigmas are given as FLUX gives them."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    torch.testing.assert_close(shifted_times(steps=steps, shift=shift).float(), scheduler.sigmas)


@pytest.mark.parametrize("pixels", [256, 512, 720, 1024])
def test_dynamic_shift_is_the_resolution_dependent_grid_of_flux(pixels):
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    tokens, steps = (pixels // 16) ** 2, 12
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    mu = calculate_shift(tokens)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert math.log(dynamic_shift(tokens)) == pytest.approx(mu, rel=1e-12)
    torch.testing.assert_close(shifted_times(steps=steps, shift=dynamic_shift(tokens)).float(), scheduler.sigmas)


def test_dynamic_shift_by_hand():
    assert dynamic_shift(256) == pytest.approx(math.exp(0.5))
    assert dynamic_shift(4096) == pytest.approx(math.exp(1.15))
    assert dynamic_shift(30, base_tokens=10, max_tokens=50, base_shift=0.0, max_shift=1.0) == pytest.approx(math.exp(0.5))


@pytest.mark.parametrize("shift", [0.0, -3.0, float("nan")])
def test_a_shift_that_is_not_positive_is_refused(shift):
    with pytest.raises(ValueError, match=rf"shift must be > 0, got {shift}"):
        shifted_times(steps=4, shift=shift)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        shifted_times(steps=0)


def test_dynamic_shift_refuses_no_tokens_and_equal_anchors():
    with pytest.raises(ValueError, match="need tokens >= 1 and base_tokens != max_tokens, got 0"):
        dynamic_shift(0)
    with pytest.raises(ValueError, match="got 5, 7 and 7"):
        dynamic_shift(5, base_tokens=7, max_tokens=7)
