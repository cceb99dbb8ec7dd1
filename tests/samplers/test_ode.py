import pytest
import torch

from flowrl.flow import Condition
from flowrl.testing import GaussianField, check_sampler
from samplers import DPMSolverPP2M, Euler, Heun, ODESampler, ShiftedGrid


@pytest.mark.parametrize("solver", [Euler(), DPMSolverPP2M()], ids=["Euler", "DPM++ 2M"])
def test_ode_sampling_keeps_the_contract_of_samplers(solver, curved, prompts, noise):
    check_sampler(ODESampler(grid=ShiftedGrid(steps=5), solver=solver, group_size=2, max_batch=3), curved, noise(6), prompts(3))


def test_the_euler_error_against_the_exact_flow_halves_with_the_step():
    """The flow of the field of N(2, 0.5²) takes noise x to 2 + 0.5·x."""
    x, field = torch.randn(50, 2), GaussianField(mean=2.0, std=0.5)
    errors = []
    for steps in (40, 80):
        drawn = ODESampler(grid=ShiftedGrid(steps=steps)).sample(field, x, Condition(rows=50))
        errors.append((drawn.final - (2 + 0.5 * x)).abs().max().item())
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)


def test_an_ode_trajectory_has_samples_and_nothing_to_train_on(curved, prompts, noise):
    drawn = ODESampler(grid=ShiftedGrid(steps=4), group_size=2).sample(curved, noise(6), prompts(3))
    assert drawn.samples.shape == (6, 1, 1, 2, 3)
    assert drawn.children.shape == (6, 0, 2, 3)
    assert drawn.parents.shape == (0, 2, 3)
    assert drawn.log_prob.shape == drawn.parent_index.shape == (6, 0)
    assert drawn.group.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("solver", "expected"), [(Euler(), 3 * 4), (DPMSolverPP2M(), 3 * 4), (Heun(), 3 * 7)])
def test_ode_evaluations_are_counted(solver, expected, curved, recorded, prompts, noise):
    spy = recorded(curved)
    drawn = ODESampler(grid=ShiftedGrid(steps=4), solver=solver, max_batch=2).sample(spy, noise(3), prompts(3))
    assert drawn.network_evaluations == sum(spy.sizes) == expected
    assert max(spy.sizes) == 2


def test_guidance_counts_twice(curved, prompts, noise):
    from flowrl.flow import ClassifierFreeGuidance

    guided = ClassifierFreeGuidance(field=curved, scale=3.0, negative=prompts(1))
    assert ODESampler(grid=ShiftedGrid(steps=4)).sample(guided, noise(3), prompts(3)).network_evaluations == 2 * 3 * 4


@pytest.mark.parametrize("name", ["max_batch", "group_size"])
def test_an_ode_sampler_that_cannot_work_is_refused_where_it_is_built(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ODESampler(grid=ShiftedGrid(steps=4), **{name: 0})
