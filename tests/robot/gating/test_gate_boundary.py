import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.flow import shifted_times
from robot.gating.boundary import BOUNDARIES


def _times(boundary: str, multipliers: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    times = [torch.ones_like(multipliers[0])]
    for k, r in enumerate(multipliers):
        times.append(BOUNDARIES[boundary](times[-1], r, grid, k))
    return torch.stack(times)


@pytest.mark.parametrize(
    ("boundary", "expected"),
    [
        ("clamp", [1, 0.7, 0.6, 0.5, 0]),  # 1 − 1.2·.25, − .4·.25, − .4·.25, − 2·.25 -> 0
        ("finish", [1, 0.7, 0.6, 0.5, 0]),
        # shares .3/(.3 + .75), .1/(.1 + .5), .1/(.1 + .25), 1
        ("normalise", [1, 0.75 / 1.05, 0.75 / 1.05 * 0.5 / 0.6, 0.75 / 1.05 * 0.5 / 0.6 * 0.25 / 0.35, 0]),
    ],
)
def test_times_by_hand(boundary, expected):
    multipliers = torch.tensor([[1.2], [0.4], [0.4], [2.0]], dtype=torch.float64)
    times = _times(boundary, multipliers, shifted_times(4))
    torch.testing.assert_close(times[:, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("boundary", "end"), [("clamp", 0.5), ("finish", 0.0), ("normalise", 0.0)])
def test_only_clamp_leaves_a_latent_noisy_at_the_end(boundary, end):
    times = _times(boundary, torch.full((5, 1), 0.5, dtype=torch.float64), shifted_times(5))
    assert times[-1].item() == pytest.approx(end, abs=1e-12)
    assert (times[:-1] > 0).all()


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (5, 1.0), (7, 3.0), (5, 0.2)])  # the last differs if rounded
def test_multiplier_one_is_the_shared_grid_to_the_last_bit(boundary, steps, shift):
    grid = shifted_times(steps, shift)
    times = _times(boundary, torch.ones(steps, 2, dtype=torch.float64), grid)
    assert torch.equal(times, grid[:, None].expand(-1, 2))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@given(
    multipliers=st.lists(st.sampled_from([0.0, 1.0, 2.0]) | st.floats(0, 2), min_size=1, max_size=12),
    shift=st.floats(0.1, 5),
)
def test_times_never_increase_and_stay_in_0_to_1(boundary, multipliers, shift):
    times = _times(boundary, torch.tensor(multipliers, dtype=torch.float64)[:, None], shifted_times(len(multipliers), shift))
    assert (times.diff(dim=0) <= 0).all()
    assert times.min() >= 0
    assert times.max() == 1


@given(multipliers=st.lists(st.floats(0, 2), min_size=2, max_size=12))
def test_a_normalised_latent_arrives_at_the_last_step_and_not_before(multipliers):
    times = _times("normalise", torch.tensor(multipliers, dtype=torch.float64)[:, None], shifted_times(len(multipliers)))
    assert times[-1] == 0
    assert (times[:-1] > 0).all()


def test_a_multiplier_of_zero_holds_a_latent_at_noise():
    assert (_times("clamp", torch.zeros(6, 3, dtype=torch.float64), shifted_times(6, 2.0)) == 1).all()
