import math

import pytest
import torch
from torch.distributions import Normal

from robot.gating import Decision, multiplier
from robot.gating.decision import inverse_multiplier

LAWS = [(0.0, 0.6), (1.5, 0.3), (-2.0, 1.0), (0.0, 1.5), (0.7, 0.05)]


def _law(mean: float, std: float) -> Decision:
    return Decision(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([math.log(std)], dtype=torch.float64))


def _density(law: Decision, points: int = 400_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Midpoints of (0, 2) and the density there."""
    r = (torch.arange(points, dtype=torch.float64) + 0.5) * 2 / points
    u = torch.logit(r / 2)
    many = Decision(law.mean.expand(points, 1), law.log_std)
    return r, many.log_prob(u[:, None])[:, 0].exp()


@pytest.mark.parametrize(("mean", "std"), LAWS)
def test_the_density_of_a_multiplier_integrates_to_one_over_0_to_2(mean, std):
    _, density = _density(_law(mean, std))
    assert (density.mean() * 2).item() == pytest.approx(1, abs=2e-5)


@pytest.mark.parametrize(("mean", "std"), LAWS)
def test_the_density_below_a_multiplier_is_the_normal_probability_of_its_logit(mean, std):
    r, density = _density(_law(mean, std))
    for edge in (0.3, 1.0, 1.7):
        below = density[r < edge].sum().item() * 2 / len(r)
        logit = math.log(edge / (2 - edge))
        assert below == pytest.approx(Normal(mean, std).cdf(torch.tensor(logit)).item(), abs=5e-5)


@pytest.mark.parametrize("u", [-80.0, 80.0])
def test_a_decision_far_out_is_scored_exactly_although_its_multiplier_rounds_to_an_end(u):
    law = Decision(torch.full((1, 1), u), torch.zeros(1))
    # sigmoid'(u) = exp(-|u|) there, to the last bit
    expected = -0.5 * math.log(2 * math.pi) - math.log(2) + 80
    assert law.log_prob(torch.full((1, 1), u)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("mean", "std"), LAWS)
def test_the_entropy_is_that_of_the_multiplier(mean, std):
    law = _law(mean, std)
    _, density = _density(law)
    expected = -(density * density.clamp_min(1e-300).log()).mean().item() * 2
    assert law.entropy().item() == pytest.approx(expected, abs=1e-3)


def test_the_entropy_never_exceeds_that_of_the_uniform_law_and_falls_again_for_wide_spreads():
    spreads = torch.linspace(-3, 2, 26, dtype=torch.float64)
    entropy = Decision(torch.zeros(26, 1, dtype=torch.float64), spreads[:, None]).entropy()[:, 0]
    assert (entropy <= math.log(2)).all()
    assert 0 < entropy.argmax() < 25


def test_the_ratio_of_two_laws_is_that_of_their_normals_at_the_stored_decision():
    u = torch.tensor([[0.3, -1.2]])
    old, new = Decision(torch.zeros(1, 2), torch.tensor([-0.5, -0.5])), Decision(torch.tensor([[0.2, 0.1]]), torch.tensor([-0.4, -0.6]))
    expected = Normal(new.mean, new.log_std.exp()).log_prob(u) - Normal(old.mean, old.log_std.exp()).log_prob(u)
    torch.testing.assert_close(new.log_prob(u) - old.log_prob(u), expected)


def test_the_multiplier_of_zero_is_exactly_one():
    assert multiplier(torch.zeros(())).item() == 1.0


def test_multipliers_can_be_turned_into_decisions():
    r = torch.tensor([0.05, 0.6, 1.0, 1.95], dtype=torch.float64)
    torch.testing.assert_close(multiplier(inverse_multiplier(r)), r)


@pytest.mark.parametrize("r", [0.0, 2.0, float("nan")])
def test_multipliers_that_no_decision_gives_are_refused(r):
    with pytest.raises(ValueError, match=r"must lie in \(0, 2\)"):
        inverse_multiplier(torch.tensor([r]))


def test_decisions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"decisions of shape \(2,\) cannot be scored"):
        Decision(torch.zeros(1, 2), torch.zeros(2)).log_prob(torch.zeros(2))
