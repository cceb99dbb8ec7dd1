"""AND, OR and guidance against their closed forms."""

import itertools
import math

import pytest
import torch
from laws import compose, drawn, flow, gaussian

from flowrl.flow import ODE, Ancestral, RectifiedFlow
from robot import Composer, CostGuidance, Member, UnconditionalGuidance, smoothness
from robot.composition.operators import And, Or, Step, circumcentre


def a_step(velocities, t=0.6, s=0.5, x=None, seed=0, weights=None):
    members, _batch = len(velocities), velocities.shape[1]
    x = torch.randn(velocities.shape[1:], generator=torch.Generator().manual_seed(9), dtype=velocities.dtype) if x is None else x
    weights = torch.full((members, 1, *velocities.shape[2:]), 1 / members) if weights is None else weights
    return Step(velocities, weights, x, t, s, lambda v: v, Ancestral(noise_level=1.0), torch.Generator().manual_seed(seed), x.shape[-1])


def test_and_of_two_takes_the_midpoint_and_noise_orthogonal_to_the_difference():
    v = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = a_step(v)
    found = And().step(step)
    transition = step.transition(v.mean(0))
    noise = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).flatten(1)
    edge = (v[0] - v[1]).flatten(1)
    projected = noise - (noise * edge).sum(1, keepdim=True) / (edge**2).sum(1, keepdim=True) * edge
    torch.testing.assert_close(found, transition.mean + transition.std * projected.reshape(3, 4, 5), atol=1e-10, rtol=0)


def test_and_solves_the_linear_system_of_superdiff():
    """Proposition 6: Σκ = 1 and every log-density grows alike over the step with the noise that is applied."""
    v = torch.randn(3, 1, 2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t, s = 0.6, 0.5
    step = a_step(v, t, s)
    x_s = And().step(step)
    r, r_s = t / (1 - t), s / (1 - s)
    h = r**2 - r_s**2
    scores = -(step.x + (1 - t) * v) / r  # of z = x/(1 − t)
    dz = x_s / (1 - s) - step.x / (1 - t)
    growth = [(dz * score).sum() - 0.5 * h * (score**2).sum() for score in scores]
    assert float(growth[1] - growth[0]) == pytest.approx(0, abs=1e-9)
    assert float(growth[2] - growth[0]) == pytest.approx(0, abs=1e-9)


def test_the_circumcentre_is_equally_far_from_all_points_and_lies_in_their_plane():
    points = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    centre, basis = circumcentre(points)
    distances = (points - centre[:, None]).norm(dim=-1)
    torch.testing.assert_close(distances, distances[:, :1].expand_as(distances), atol=1e-10, rtol=0)
    offset = centre - points[:, 0]
    torch.testing.assert_close((basis @ (basis.transpose(1, 2) @ offset[..., None]))[..., 0], offset, atol=1e-10, rtol=0)


def test_the_circumcentre_of_points_that_coincide_is_that_point():
    point = torch.randn(2, 1, 5, dtype=torch.float64)
    centre, basis = circumcentre(point.expand(2, 3, 5))
    torch.testing.assert_close(centre, point[:, 0])
    assert not basis.any()


def plane(mean):
    """N(mean, 0.4²) in the plane, as a flow."""
    mean = torch.tensor(mean)

    def predict(x, t, condition):
        t = t.reshape(-1, 1, 1)
        spread = (1 - t) ** 2 * 0.16 + t**2
        return (t - (1 - t) * 0.16) / spread * (x - (1 - t) * mean) - mean

    return Member(predict=predict, kind="velocity", path=RectifiedFlow(), weight=0.5)


def test_and_stays_where_both_policies_are_equally_likely():
    members = [plane([1.0, 0.0]), plane([-1.0, 0.0])]
    generator = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    both = Composer(members, operator="and").sample((4000, 1, 2), steps=200, generator=generator())
    mean = Composer(members, operator="convex").sample((4000, 1, 2), steps=200, sampler="sde", generator=generator())
    assert both[..., 0].std() < 0.02
    assert mean[..., 0].std() == pytest.approx(0.4, abs=0.02)
    assert both[..., 1].std() == pytest.approx(0.4, abs=0.02)


def test_or_samples_the_mixture_of_the_parents_by_weight():
    actions = drawn(compose(gaussian(-1, 0.2, weight=0.25), gaussian(1, 0.2, weight=0.75), operator="or"), rows=20_000, steps=200)
    right = actions > 0
    assert right.float().mean() == pytest.approx(0.75, abs=0.02)
    for side, mean in ((right, 1.0), (~right, -1.0)):
        assert actions[side].mean() == pytest.approx(mean, abs=0.02)
        assert actions[side].std() == pytest.approx(0.2, abs=0.02)


def test_or_with_exact_densities_has_the_velocity_of_the_mixture():
    """The mixture's own network, from Bayes' rule, against what the operator makes of the members' with the exact log-densities."""
    t, s, means, stds, weights = 0.6, 0.5, (-1.0, 1.5), (0.3, 0.6), (0.3, 0.7)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1)
    members = [flow([m], [q]) for m, q in zip(means, stds, strict=True)]
    times = torch.full((9,), t, dtype=torch.float64)
    velocities = torch.stack([member.predict(x, times, None).double() for member in members])
    mixed = flow(list(means), list(stds), list(weights)).predict(x, times, None).double()
    spread = [(1 - t) ** 2 * q**2 + t**2 for q in stds]
    density = torch.stack([-0.5 * (x - (1 - t) * m) ** 2 / v - 0.5 * math.log(v) for m, v in zip(means, spread, strict=True)])[..., 0, 0]
    found = []
    operator = Or()
    operator._log_density = density
    step = a_step(velocities, t, s, x, weights=torch.tensor(weights, dtype=torch.float64).reshape(2, 1, 1, 1))
    object.__setattr__(step, "refine", lambda v: found.append(v) or v)
    operator.step(step)
    torch.testing.assert_close(found[0], mixed, atol=1e-6, rtol=0)


def test_estimates_of_or_sharpen_with_more_steps():
    """Against the exact log-ratio of the two parents' densities at the end of each path; SuperDiff's Itô estimate behaves alike."""
    errors = []
    for steps in (20, 80, 320):
        operator = Or()
        x = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        times = torch.linspace(1, 0.02, steps + 1, dtype=torch.float64).tolist()
        generator = torch.Generator().manual_seed(1)
        members = [flow([-1.0], [0.5]), flow([1.0], [0.5])]
        for t, s in itertools.pairwise(times):
            velocities = torch.stack([m.predict(x, torch.full((len(x),), t, dtype=torch.float64), None).double() for m in members])
            step = Step(velocities, torch.full((2, 1, 1, 1), 0.5), x, t, s, lambda v: v, Ancestral(noise_level=1.0), generator, 1)
            x = operator.step(step)
        spread = (1 - s) ** 2 * 0.25 + s**2
        exact = [-0.5 * (x - (1 - s) * m) ** 2 / spread for m in (-1.0, 1.0)]
        error = (operator._log_density[0] - operator._log_density[1]) - (exact[0] - exact[1])[:, 0, 0]
        errors.append(float((error**2).mean().sqrt()))
    assert errors[0] > 2 * errors[1] > 2.5 * errors[2]


@pytest.mark.parametrize("operator", ["and", "or", "fkc"])
def test_operators_that_choose_their_noise_refuse_the_ode(operator):
    composer = compose(gaussian(-1, 0.5, weight=0.5), gaussian(1, 0.5, weight=0.5), operator=operator)
    with pytest.raises(ValueError, match="use sampler='sde'"):
        composer.sample((2, 1, 1), sampler=ODE())
    assert composer.sample((2, 1, 1), steps=5).shape == (2, 1, 1)


def test_a_linear_cost_shifts_a_standard_normal_policy_by_its_slope():
    """exp(−scale·cost) on N(0.5, 2²): cost = 3·a and scale 0.1 move the mean by −0.1·3·2² = −1.2 and leave the spread."""
    guided = compose(gaussian(0.5, 2.0, offset=0.5, scale=2.0), guidance=(CostGuidance(cost=lambda a: 3 * a.sum((1, 2)), scale=0.1),))
    actions = drawn(guided, rows=20_000, steps=50)
    assert actions.mean() == pytest.approx(0.5 - 1.2, abs=0.05)
    assert actions.std() == pytest.approx(2.0, abs=0.05)


def test_smoothness_is_the_mean_squared_second_difference():
    actions = torch.tensor([[[0.0], [1.0], [4.0], [9.0]]])
    torch.testing.assert_close(smoothness(actions), torch.tensor([4.0]))


def test_guidance_away_from_an_unconditional_policy_extrapolates():
    away = UnconditionalGuidance(member=gaussian(0, 0.5), scale=2.0)
    actions = drawn(compose(gaussian(1, 0.5), guidance=(away,)), rows=4000, steps=50)
    assert actions.mean() == pytest.approx(2.0, abs=0.03)  # v = v0 + 2·(v − v0): means extrapolate where variances agree


def test_clipping_bounds_the_composed_actions_in_raw_units():
    inside = drawn(compose(gaussian(5, 3.0, offset=1.0, scale=2.0), clip=1.0), rows=500, steps=20)
    assert inside.max() <= 3.0 + 1e-5
    assert inside.min() >= -1.0 - 1e-5
    own = drawn(compose(gaussian(5, 3.0, offset=1.0, scale=2.0, clip=1.0)), rows=500, steps=20)
    torch.testing.assert_close(own, inside, atol=1e-5, rtol=0)


def test_clipping_the_composition_differs_from_clipping_its_members():
    """Predicted data 4 and 0 with bound 1: composed then clipped 1, clipped then composed 0.5 (GPC's code clips the composition)."""
    constant = lambda value, **more: Member(  # noqa: E731
        predict=lambda x, t, c: torch.full_like(x, value), kind="sample", path=RectifiedFlow(), weight=0.5, **more
    )
    after = Composer([constant(4.0), constant(0.0)], clip=1.0).sample((1, 1, 1), steps=4)
    before = Composer([constant(4.0, clip=1.0), constant(0.0, clip=1.0)]).sample((1, 1, 1), steps=4)
    assert (after.item(), before.item()) == pytest.approx((1.0, 0.5), abs=1e-6)


def test_beyond_the_shorter_chunk_and_is_the_longer_policy_alone():
    """There the two cannot disagree: no noise is taken away and the weights of the longer policy do not matter."""
    members = [gaussian(1, 0.5, weight=0.5), gaussian(-1, 0.5, weight=0.5, horizon=1)]
    actions = Composer(members, operator="and").sample((6000, 3, 1), steps=100, generator=torch.Generator().manual_seed(0))[..., 0]
    assert actions[:, 0].std() < 0.05
    for step in (1, 2):
        assert actions[:, step].mean() == pytest.approx(1.0, abs=0.03)
        assert actions[:, step].std() == pytest.approx(0.5, abs=0.03)
