"""The flow-matching loss against closed forms."""

import math

import pytest
import torch

from flowrl.flow import Condition, flow_matching_error, flow_matching_loss, logit_normal_times
from flowrl.testing import GaussianField


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_loss_by_hand():
    """data (1, 3), noise (0, −1): velocity (−1, −4). A field that returns the state at t = 0.25, (0.75, 2), is off by (1.75, 6)."""
    loss = flow_matching_loss(lambda x, t, c: x, torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, -1.0]]), 0.25, Condition(rows=1))
    torch.testing.assert_close(loss, torch.tensor([(1.75**2 + 6**2) / 2]))


def test_a_field_that_knows_the_ends_has_no_loss():
    data, noise = pair(4, 3)
    loss = flow_matching_loss(lambda x, t, c: noise - data, data, noise, torch.rand(4), Condition(rows=4))
    assert (loss == 0).all()


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_exact_field_has_the_irreducible_loss_and_no_field_has_less(t):
    """Var(noise − data | x_t) = (1 + σ²) − (t − (1 − t)σ²)²/Var(x_t) for data N(m, σ²)."""
    std = 0.5
    data, noise = pair(200000, 1)
    data = 2 + std * data
    exact = GaussianField(mean=2.0, std=std)
    loss = flow_matching_loss(exact, data, noise, t, Condition(rows=200000)).mean().item()
    expected = 1 + std**2 - (t - (1 - t) * std**2) ** 2 / ((1 - t) ** 2 * std**2 + t**2)
    assert loss == pytest.approx(expected, rel=0.01)
    for worse in (GaussianField(mean=2.2, std=std), GaussianField(mean=2.0, std=0.8)):
        assert flow_matching_loss(worse, data, noise, t, Condition(rows=200000)).mean().item() > loss


def test_every_row_has_a_loss_and_a_time_of_its_own():
    data, noise = pair(3, 2, 4)
    t = torch.tensor([0.2, 0.5, 0.8])
    field = GaussianField(mean=1.0, std=0.7)
    loss = flow_matching_loss(field, data, noise, t, Condition(rows=3))
    assert loss.shape == (3,)
    alone = [flow_matching_loss(field, data[i : i + 1], noise[i : i + 1], float(t[i]), Condition(rows=1)) for i in range(3)]
    torch.testing.assert_close(loss, torch.cat(alone))
    per_token = flow_matching_loss(field, data, noise, t[:, None].expand(3, 2), Condition(rows=3))
    torch.testing.assert_close(per_token, loss)


def test_the_field_gets_state_time_and_condition():
    data, noise = pair(2, 3)
    condition = Condition({"label": torch.tensor([1.0, 2.0])})
    seen = []
    flow_matching_loss(lambda *arguments: seen.append(arguments) or arguments[0], data, noise, 0.3, condition)
    torch.testing.assert_close(seen[0][0], 0.7 * data + 0.3 * noise)
    assert seen[0][1:] == (0.3, condition)


def test_data_and_noise_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"data and noise must have the same shape, got \(2, 3\) and \(1, 3\)"):
        flow_matching_loss(GaussianField(), torch.zeros(2, 3), torch.zeros(1, 3), 0.5, Condition(rows=2))


def test_logit_normal_times_have_the_logit_they_were_asked_for():
    times = logit_normal_times(100000, torch.Generator().manual_seed(0), mean=0.5, std=1.5)
    logit = torch.log(times / (1 - times)).double()
    assert times.min() > 0
    assert times.max() < 1
    assert logit.mean().item() == pytest.approx(0.5, abs=0.02)
    assert logit.std().item() == pytest.approx(1.5, abs=0.02)
    assert times.median().item() == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.01)


def test_errors_entry_by_entry_by_hand_with_a_time_per_token():
    """Data 1, noise 3: at t = (0, 0.5) the states are (1, 2). A field that returns the state is off the velocity 2 by (−1, 0)."""
    data, noise = torch.ones(1, 2, 1), torch.full((1, 2, 1), 3.0)
    error = flow_matching_error(lambda x, t, c: x, data, noise, torch.tensor([[0.0, 0.5]]), Condition(rows=1))
    torch.testing.assert_close(error, torch.tensor([[[1.0], [0.0]]]))
