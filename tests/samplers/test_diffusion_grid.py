"""The grid of diffusion models in flow coordinates."""

import pytest
import torch

from samplers import DiffusionGrid


def test_a_grid_of_two_timesteps_is_the_one_by_hand():
    """β = 0.25 and 0.81: ᾱ = 0.75 and 0.1425, so noise to data is sqrt(1/3) and sqrt(0.8575/0.1425)."""
    grid = DiffusionGrid(steps=2, timesteps=2, beta_start=0.25, beta_end=0.81, offset=0)
    odds = torch.tensor([0.8575 / 0.1425, 1 / 3], dtype=torch.float64).sqrt()
    torch.testing.assert_close(grid.times(), torch.cat([odds / (1 + odds), torch.zeros(1, dtype=torch.float64)]))


def test_fifty_steps_of_stable_diffusion_start_at_timestep_981():
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = float((1 - beta)[:982].prod())
    noise, data = (1 - alpha_bar) ** 0.5, alpha_bar**0.5
    assert float(DiffusionGrid(steps=50).times()[0]) == pytest.approx(noise / (noise + data), abs=1e-12)
    assert len(DiffusionGrid(steps=50).times()) == 51


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be at least 1 and at most 1000, got 0"),
        ({"steps": 1001}, "steps must be at least 1 and at most 1000, got 1001"),
        ({"steps": 1000}, "must strictly decrease"),
        ({"steps": 4, "beta_end": 1.0}, "need 0 < beta_start <= beta_end < 1, got 0.00085 and 1.0"),
    ],
)
def test_what_is_no_grid_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DiffusionGrid(**fields)
