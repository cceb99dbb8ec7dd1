import pytest
import torch

from flowrl.flow import Condition
from flowrl.testing import GaussianField, check_sampler
from samplers import DPMSolverPP2M, Euler, Heun, ODESampler, PerTokenSchedule, ShiftedGrid


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


def test_tokens_may_have_times_of_their_own_by_hand():
    """Velocity 2 everywhere: a token that goes from 1 to t falls by 2·(1 − t)."""
    grid = PerTokenSchedule.constant((0.0, 0.5, 2.0), steps=4)
    final = ODESampler(grid=grid).sample(lambda x, t, c: torch.full_like(x, 2.0), torch.zeros(5, 3, 2), Condition(rows=5)).final
    torch.testing.assert_close(final, torch.tensor([0.0, -1.0, -2.0])[:, None].expand(5, 3, 2))


def test_a_field_is_told_the_time_of_every_token_also_in_parts():
    told, grid = [], PerTokenSchedule.from_increments(torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0)))

    def field(x, t, condition):
        told.append(t)
        return x

    ODESampler(grid=grid, max_batch=2).sample(field, torch.zeros(5, 3, 2), Condition(rows=5))
    found = torch.cat(told).unflatten(0, (2, 5))
    torch.testing.assert_close(found, grid.times()[:2].float())


@pytest.mark.parametrize(("tokens", "batch"), [(2, 1), (3, 4)])
def test_a_grid_of_other_tokens_or_rows_is_refused(tokens, batch):
    grid = PerTokenSchedule.from_increments(torch.ones(1, batch, tokens))
    with pytest.raises(ValueError, match=r"states are \(5, 3, 2\); its tokens are those on the states' second axis, its batch is 1 or 5"):
        ODESampler(grid=grid).sample(lambda x, t, c: x, torch.zeros(5, 3, 2), Condition(rows=5))


def test_times_per_token_need_euler_steps():
    with pytest.raises(ValueError, match=r"need Euler steps.*Heun"):
        ODESampler(grid=PerTokenSchedule.shared(4, 2), solver=Heun())
