import math

import pytest
import torch

from flowrl.flow import Condition
from flowrl.testing import GaussianField
from samplers import DPMSolverPP2M, Euler, ExplicitGrid, Heun, ODESampler, ShiftedGrid
from samplers.solvers import select_rows

MEAN, STD = 2.0, 0.5


def exact_flow(x_t, t, s):
    """The flow of the Gaussian field: the standardised state stays."""
    scale = [math.sqrt((1 - at) ** 2 * STD**2 + at**2) for at in (t, s)]
    return (1 - s) * MEAN + scale[1] / scale[0] * (x_t - (1 - t) * MEAN)


def slope(errors, steps):
    """Least-squares slope of log error against log step."""
    x, y = torch.tensor(steps).double().reciprocal().log(), torch.tensor(errors).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def error(solver, grid, start, stop):
    x = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    field = GaussianField(mean=MEAN, std=STD)
    final = ODESampler(grid=grid, solver=solver).sample(field, x, Condition(rows=32)).final
    return float((final - exact_flow(x, start, stop)).abs().max())


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2), (DPMSolverPP2M(), 2)], ids=["Euler", "Heun", "DPM++ 2M"])
def test_halving_the_step_shows_the_order_that_each_solver_claims(solver, order):
    counts = [32, 64, 128, 256]
    grids = [ExplicitGrid(values=tuple(torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64).tolist())) for n in counts]
    errors = [error(solver, grid, 0.9, 0.1) for grid in grids]
    assert slope(errors, counts) == pytest.approx(order, abs=0.12)


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)], ids=["Euler", "Heun"])
def test_the_order_survives_the_steps_from_noise_and_to_data(solver, order):
    counts = [32, 64, 128, 256]
    errors = [error(solver, ShiftedGrid(steps=n), 1.0, 0.0) for n in counts]
    assert slope(errors, counts) == pytest.approx(order, abs=0.08)


def test_dpm_solver_loses_a_logarithm_of_its_order_where_the_half_log_snr_is_infinite():
    """Near t = 1 its steps in λ do not shrink with h: the j-th leaves an error of h²/j, in sum h²·log(1/h)."""
    counts = [128, 256, 512]
    errors = [error(DPMSolverPP2M(), ShiftedGrid(steps=n), 1.0, 0.0) / math.log(n) for n in counts]
    assert slope(errors, counts) == pytest.approx(2, abs=0.05)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, with numpy 2
@pytest.mark.parametrize("steps", [5, 12, 20])
def test_dpm_solver_takes_the_steps_that_diffusers_takes(curved, prompts, noise, steps):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2)
    scheduler.set_timesteps(steps)
    x, condition = noise(4), prompts(4)
    expected = x.clone()
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        expected = scheduler.step(curved(expected, sigma, condition), timestep, expected).prev_sample
    grid = ExplicitGrid(values=tuple(scheduler.sigmas.tolist()))
    ours = ODESampler(grid=grid, solver=DPMSolverPP2M()).sample(curved, x, condition).final
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)
    euler = ODESampler(grid=grid).sample(curved, x, condition).final
    assert (euler - expected).abs().max() > 1e-2  # the comparison can tell solvers apart


@pytest.mark.parametrize(
    "case",
    [{"t": 0.8, "s": 0.5}, {"t": 1.0, "s": 0.9}, {"t": 0.2, "s": 0.0, "previous": 0.4}, {"t": 0.9, "s": 0.7, "previous": 1.0}],
    ids=["first step", "from noise", "to data", "after a step from noise"],
)
def test_dpm_solver_is_euler_where_it_has_nothing_to_extrapolate(case):
    x, v, earlier = torch.randn(3, 2, 5)
    t, s = torch.full((2,), case["t"]), torch.full((2,), case["s"])
    memory = (earlier, torch.full((2,), case["previous"])) if "previous" in case else ()
    ours, (data, at) = DPMSolverPP2M().step(v, x, t, s, memory, None)
    torch.testing.assert_close(ours, x + (case["s"] - case["t"]) * v)
    torch.testing.assert_close(data, x - case["t"] * v)
    assert torch.equal(at, t)


def test_dpm_solver_extrapolates_the_data_linearly_in_half_log_snr():
    """By hand: λ = 0 at 1/2; at previous 0.8, λ = −log 4; at s = 0.2, λ = log 4, so h = h_previous and D = 1.5·data − 0.5·previous."""
    x, v, previous = torch.randn(3, 4, 5)
    t, s = torch.full((4,), 0.5), torch.full((4,), 0.2)
    ours, _ = DPMSolverPP2M().step(v, x, t, s, (previous, torch.full((4,), 0.8)), None)
    extrapolated = 1.5 * (x - 0.5 * v) - 0.5 * previous
    torch.testing.assert_close(ours, 0.4 * x + 0.6 * extrapolated)


@pytest.mark.parametrize("solver", [Euler(), Heun(), DPMSolverPP2M()], ids=["Euler", "Heun", "DPM++ 2M"])
def test_rows_at_times_of_their_own_step_as_they_would_alone(solver, curved, prompts, noise):
    """Also after rows were branched and dropped, with what the solver remembers of them."""
    x, condition = noise(4), prompts(4)
    early, t, s = torch.tensor([1.0, 0.9, 0.9, 0.5]), torch.tensor([0.9, 0.7, 0.8, 0.3]), torch.tensor([0.8, 0.5, 0.2, 0.0])
    order = torch.tensor([3, 0, 0, 2])

    def two_steps(x, condition, times, chosen):
        early, t, s = times
        first, memory = solver.step(curved(x, early, condition), x, early, t, (), lambda z, at, rows: curved(z, at, condition[rows]))
        x, condition, t, s = first[chosen], condition[chosen], t[chosen], s[chosen]
        return solver.step(
            curved(x, t, condition), x, t, s, select_rows(memory, chosen), lambda z, at, rows: curved(z, at, condition[rows])
        )[0]

    together = two_steps(x, condition, (early, t, s), order)
    for place, row in enumerate(order.tolist()):
        only = slice(row, row + 1)
        alone = two_steps(x[only], condition[only], (early[only], t[only], s[only]), torch.tensor([0]))
        torch.testing.assert_close(together[place : place + 1], alone, atol=1e-6, rtol=1e-6)


def test_heun_averages_the_velocities_at_both_ends_and_ends_with_euler(curved, prompts, noise):
    x, condition = noise(2), prompts(2)
    t, s = torch.tensor([0.6, 0.3]), torch.tensor([0.4, 0.0])
    v = curved(x, t, condition)
    stepped, _ = Heun().step(v, x, t, s, (), lambda z, at, rows: curved(z, at, condition[rows]))
    ahead = curved(x - 0.2 * v, torch.full((2,), 0.4), condition)
    torch.testing.assert_close(stepped[0], x[0] - 0.1 * (v[0] + ahead[0]))
    torch.testing.assert_close(stepped[1], x[1] - 0.3 * v[1])
