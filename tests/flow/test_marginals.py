"""An exact Gaussian field sampled with each SDE keeps the exact marginals.

For data N(2, 0.5²) the velocity is linear in the state, so a step is x' = A·x + const + std·noise and the variance follows
Var' = A²·Var + std² without any sampling. The table is that of the one-step errors of first-order steps (specification of
G²RPO, section 1.6, "marginal preservation"), T = 16, shift 3.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from flowrl.flow import CPS, ODE, DanceSDE, FlowSDE, Transition, shifted_times
from flowrl.testing import GaussianField

MEAN, STD = 2.0, 0.5
FIELD = GaussianField(mean=MEAN, std=STD)
GRID = shifted_times(steps=16, shift=3.0).tolist()
FLOW, DANCE, CPS_07 = FlowSDE(noise_level=0.7), DanceSDE(noise_level=0.3), CPS(noise_level=0.7)
TABLE = {  # step: target, then the variance after that one step from the exact marginal
    0: (0.9571, 0.9570, 1.0277, 0.9570, 0.9570),
    1: (0.9117, 0.9115, 0.9956, 0.9116, 0.9114),
    4: (0.7585, 0.7582, 0.7689, 0.7583, 0.7566),
    7: (0.5781, 0.5774, 0.5843, 0.5776, 0.5717),
    12: (0.2546, 0.2480, 0.2545, 0.2490, 0.2218),
}


def marginal_variance(t):
    return (1 - t) ** 2 * STD**2 + t**2


def variance_after(dynamics, variance, t, s):
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    step = dynamics.transition(FIELD(x, t), x, t, s)
    slope = (step.mean[1] - step.mean[0]).item()
    return slope**2 * variance + step.std.max().item() ** 2


def relative_error(dynamics, k):
    t, s = GRID[k], GRID[k + 1]
    return variance_after(dynamics, marginal_variance(t), t, s) / marginal_variance(s) - 1


@dataclass
class Mistaken:
    """FlowSDE with its two drift corrections scaled: 1, 1 is right."""

    of_state: float
    of_velocity: float

    def transition(self, velocity, x_t, t, s):
        diffusion = 0.7**2 * t / (1 - t)
        drift = velocity + diffusion / (2 * t) * (self.of_state * x_t + self.of_velocity * (1 - t) * velocity)
        return Transition(x_t + (s - t) * drift, torch.tensor(math.sqrt(diffusion * (t - s))))


@pytest.mark.parametrize("k", TABLE)
@pytest.mark.parametrize(
    ("column", "dynamics"), list(enumerate([ODE(), FLOW, DANCE, CPS_07], start=1)), ids=["ODE", "FlowSDE", "DanceSDE", "CPS"]
)
def test_variance_after_one_step_is_that_of_the_table(k, column, dynamics):
    assert marginal_variance(GRID[k + 1]) == pytest.approx(TABLE[k][0], abs=5.1e-5)
    assert variance_after(dynamics, marginal_variance(GRID[k]), GRID[k], GRID[k + 1]) == pytest.approx(TABLE[k][column], abs=5.1e-5)


@pytest.mark.parametrize("k", range(3, 13))
@pytest.mark.parametrize("dynamics", [FLOW, DANCE], ids=["FlowSDE", "DanceSDE"])
def test_a_stochastic_step_keeps_the_variance_within_3_percent(k, dynamics):
    assert abs(relative_error(dynamics, k)) < 0.03


@pytest.mark.parametrize(("of_state", "of_velocity"), [(-1, -1), (0, 0), (1, -1), (-1, 1)], ids=["both signs", "none", "velocity", "state"])
def test_3_percent_tells_every_wrong_sign_of_the_drift_from_the_right_one(of_state, of_velocity):
    assert abs(relative_error(Mistaken(1, 1), 4)) == pytest.approx(abs(relative_error(FLOW, 4)), rel=1e-6)
    assert all(abs(relative_error(Mistaken(of_state, of_velocity), k)) > 0.03 for k in range(3, 10))


@pytest.mark.parametrize("dynamics", [ODE(), FLOW, DANCE, CPS_07], ids=["ODE", "FlowSDE", "DanceSDE", "CPS"])
@pytest.mark.parametrize("k", [0, 1, 4, 7, 12, 15])
def test_the_mean_of_the_marginal_goes_exactly_to_the_mean_of_the_next(dynamics, k):
    t, s = GRID[k], GRID[k + 1]
    centre = torch.full((1, 1), (1 - t) * MEAN, dtype=torch.float64)
    step = dynamics.transition(FIELD(centre, t), centre, t, s)
    assert step.mean.item() == pytest.approx((1 - s) * MEAN, abs=1e-12)


@pytest.mark.parametrize("dynamics", [ODE(), FLOW, DANCE], ids=["ODE", "FlowSDE", "DanceSDE"])
def test_the_final_variance_converges_to_that_of_the_data_with_first_order(dynamics):
    errors = []
    for steps in (500, 1000):
        variance = 1.0
        for t, s in pairwise(shifted_times(steps=steps, shift=3.0).tolist()):
            variance = variance_after(dynamics, variance, t, s)
        errors.append(abs(variance - STD**2))
    assert errors[1] < 2e-3
    assert errors[1] < 0.6 * errors[0]  # twice the steps, half the error or less


def test_cps_loses_variance_where_the_predicted_noise_has_less_than_one():
    """A property of the method, not of the code: it replaces a share of E[noise | x_t], whose variance is below 1 near the data."""
    variance = 1.0
    for t, s in pairwise(shifted_times(steps=1000, shift=3.0).tolist()):
        variance = variance_after(CPS_07, variance, t, s)
    assert variance == pytest.approx(0.1787, abs=1e-3)


@pytest.mark.parametrize("dynamics", [ODE(), FLOW, DANCE], ids=["ODE", "FlowSDE", "DanceSDE"])
def test_sampling_ends_at_the_distribution_of_the_data(dynamics):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, 1, generator=generator)
    for t, s in pairwise(shifted_times(steps=200, shift=3.0).tolist()):
        x = dynamics.transition(FIELD(x, t), x, t, s).sample(generator)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(STD, abs=0.02)
