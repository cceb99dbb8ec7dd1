import json
import math
from pathlib import Path

import pytest
import torch

from samplers import DynamicShiftGrid, ExplicitGrid, ShiftedGrid

SCHEDULES = json.loads((Path(__file__).parents[1] / "goldens" / "sde_steps.json").read_text())["schedules"]


def test_shifted_grid_is_the_schedule_of_the_papers():
    printed = [1, 0.978261, 0.954545, 0.928571, 0.9, 0.868421, 0.833333, 0.794118, 0.75]
    printed += [0.7, 0.642857, 0.576923, 0.5, 0.409091, 0.3, 0.166667, 0]
    torch.testing.assert_close(ShiftedGrid(steps=16, shift=3.0).times(), torch.tensor(printed, dtype=torch.float64), atol=5e-7, rtol=0)


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_dynamic_shift_grid_is_what_the_flux_pipeline_of_diffusers_steps_through(size):
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    tokens, steps = (size // 16) ** 2, 10
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)  # calculate_shift of the pipeline
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    torch.testing.assert_close(DynamicShiftGrid(steps=steps, tokens=tokens).times().float(), scheduler.sigmas.float(), atol=1e-6, rtol=0)


def test_dynamic_shift_grid_has_a_log_shift_of_one_half_at_256_tokens():
    """A linear grid's midpoint 1/2 moves to shift/(1 + shift)."""
    shift = math.exp(0.5)
    assert DynamicShiftGrid(steps=2, tokens=256).times().tolist() == pytest.approx([1, shift / (1 + shift), 0], abs=1e-12)


def test_explicit_grid_gives_back_its_values():
    assert ExplicitGrid(values=(0.9, 0.35, 0.05)).times().tolist() == [0.9, 0.35, 0.05]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5,), "at least two times"),
        ((), "at least two times"),
        ((1.0, 0.5, 0.5, 0.0), "strictly decrease"),
        ((0.0, 0.5, 1.0), "strictly decrease"),
        ((1.0, float("nan"), 0.0), "strictly decrease"),
        ((0.5, 0.5 - 1e-12, 0.0), "strictly decrease"),
        ((1.5, 0.5, 0.0), r"lie in \[0, 1\]"),
        ((1.0, 0.5, -0.1), r"lie in \[0, 1\]"),
    ],
)
def test_explicit_grid_refuses_what_is_no_grid(values, message):
    with pytest.raises(ValueError, match=message):
        ExplicitGrid(values=values)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ShiftedGrid(steps=0), "steps must be at least 1, got 0"),
        (lambda: ShiftedGrid(steps=4, shift=0.0), "shift must be > 0, got 0"),
        (lambda: DynamicShiftGrid(steps=4, tokens=0), "tokens >= 1"),
        (lambda: DynamicShiftGrid(steps=-1, tokens=256), "steps must be at least 1, got -1"),
    ],
)
def test_bad_grids_are_refused_where_they_are_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()
