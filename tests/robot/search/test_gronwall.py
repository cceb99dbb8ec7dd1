"""Prop. 4.2 of GPC as an inequality (G8): true endpoint error ≤ Grönwall bound ≤ its Cauchy–Schwarz form."""

import itertools
import math

import pytest
import torch
from scipy.integrate import quad

from flowrl.flow import ODE
from flowrl.testing import GaussianField

STD, SHIFT = 0.5, 0.2  # the true law is N(0, STD²), the estimated one lies SHIFT beside it


def endpoint(mean, ratio, start, steps=1000):
    """Where the probability-flow ODE of ``N(mean, STD²)`` ends from ``z = start`` at noise ratio ``r``, in our sampler's steps."""
    field, ode = GaussianField(mean=torch.tensor(mean, dtype=torch.float64), std=STD), ODE()
    grid = torch.linspace(ratio, 0, steps + 1, dtype=torch.float64)
    times = grid / (1 + grid)
    x = torch.tensor([[start]], dtype=torch.float64) * (1 - times[0])
    for t, s in itertools.pairwise(times):
        x = ode.transition(field(x, t), x, t, s).mean
    return float(x)


def gronwall(ratio):
    """Eq. 20 with the drift ``−r·score``: ``L_x = 0``, ``L_s = r``, ``Λ̂ = 1/(s² + r²)``."""
    return quad(lambda r: growth(r) * r * SHIFT / (STD**2 + r**2), 0, ratio)[0]


def cauchy_schwarz(ratio):
    """Eq. 21."""
    first = quad(lambda r: (growth(r) * r) ** 2, 0, ratio)[0]
    return math.sqrt(first * quad(lambda r: (SHIFT / (STD**2 + r**2)) ** 2, 0, ratio)[0])


def growth(r):
    return math.exp(quad(lambda u: u / (STD**2 + u**2), 0, r)[0])


@pytest.mark.parametrize(
    ("ratio", "true", "bound", "looser"),
    [(1, 0.1106, 0.2472, 0.5228), (3, 0.1671, 1.0166, 7.143), (10, 0.1900, 3.805, 142.1)],
)
def test_the_error_at_the_end_lies_below_both_bounds(ratio, true, bound, looser):
    error = abs(endpoint(SHIFT, ratio, 0.7) - endpoint(0.0, ratio, 0.7))
    assert error == pytest.approx(true, abs=1e-3)
    assert gronwall(ratio) == pytest.approx(bound, rel=1e-3)
    assert cauchy_schwarz(ratio) == pytest.approx(looser, rel=1e-3)
    assert error <= gronwall(ratio) <= cauchy_schwarz(ratio)
