"""Closed forms of composed Gaussian policies (specification of GPC, section 8)."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from laws import affine, compose, diffusion, drawn, flow, gaussian, product, squaredcos

from flowrl.flow import RectifiedFlow, VariancePreserving
from robot import Composer, Member
from robot.composition.scheduler import sample_with_scheduler

KINDS = [pytest.param(diffusion, id="diffusion"), pytest.param(flow, id="flow")]


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_policies_of_equal_variance_compose_to_the_weighted_mean(first, second):
    composer = compose(gaussian(-1, 0.5, first, weight=0.3), gaussian(1, 0.5, second, weight=0.7))
    assert affine(composer, steps=100) == pytest.approx((0.4, 0.5), abs=2e-3)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize(
    ("means", "stds", "weight", "expected"),
    [
        ((-1, 1), (0.5, 1), 0.5, (-0.225941, 0.707107)),
        ((0, 1), (0.2, 0.8), 0.5, (0.287545, 0.4)),
        ((0, 1), (0.2, 0.8), 0.3, (0.500720, 0.527803)),
    ],
)
def test_the_ode_of_unequal_variances_has_its_own_law_with_the_geometric_mean_of_the_stds(first, second, means, stds, weight, expected):
    composer = compose(gaussian(means[0], stds[0], first, weight=weight), gaussian(means[1], stds[1], second, weight=1 - weight))
    assert affine(composer, steps=100) == pytest.approx(expected, abs=4e-3)


def test_three_policies_of_three_kinds_compose():
    composer = compose(
        gaussian(-1, 0.5, diffusion, weight=0.2),
        gaussian(0, 0.8, weight=0.5),
        gaussian(2, 1.2, diffusion, alphas=squaredcos(1000), kind="v", weight=0.3),
    )
    assert affine(composer, steps=100) == pytest.approx((0.186504, 0.822419), abs=5e-3)


def test_the_reverse_sde_of_unequal_variances_ends_between_the_ode_and_the_product():
    actions = drawn(compose(gaussian(-1, 0.5, weight=0.5), gaussian(1, 1, weight=0.5)), steps=200, sampler="sde")
    assert actions.mean() == pytest.approx(-1 / 3, abs=0.01)
    assert actions.std() == pytest.approx(0.679778, abs=0.008)


@pytest.mark.slow
def test_the_feynman_kac_corrector_samples_the_geometric_mean():
    composer = compose(gaussian(-1, 0.5, weight=0.5), gaussian(1, 1, weight=0.5), operator="fkc")
    actions = drawn(composer, rows=60_000, steps=200)
    assert product((-1, 1), (0.5, 1), (0.5, 0.5)) == pytest.approx((-0.6, 0.632456), abs=1e-6)
    assert actions.mean() == pytest.approx(-0.6, abs=0.02)
    assert actions.std() == pytest.approx(0.632456, abs=0.02)


def test_the_corrector_works_on_populations_of_one_observation_each():
    observation = torch.tensor([[-1.0], [3.0]])  # what the first member's mean is

    def predict(x, t, mean):
        t, mean = t.reshape(-1, 1, 1), mean[:, :, None]
        spread = (1 - t) ** 2 * 0.25 + t**2
        return (t - (1 - t) * 0.25) / spread * (x - (1 - t) * mean) - mean

    first = Member(predict=predict, kind="velocity", path=RectifiedFlow(), weight=0.5)
    actions = Composer([first, gaussian(1, 1, weight=0.5)], operator="fkc").sample(
        (4000, 1, 1), steps=60, generator=torch.Generator().manual_seed(0), condition=observation.repeat_interleave(2000, 0)
    )
    for rows, mean in ((slice(0, 2000), -1.0), (slice(2000, None), 3.0)):
        target, std = product((mean, 1), (0.5, 1), (0.5, 0.5))
        assert actions[rows].mean() == pytest.approx(target, abs=0.08)
        assert actions[rows].std() == pytest.approx(std, abs=0.08)


@pytest.mark.parametrize("steps", [10, 50])
def test_a_flow_and_a_diffusion_network_of_one_law_are_interchangeable(steps):
    first = gaussian(-1, 0.5, diffusion, weight=0.3)
    as_diffusion = drawn(compose(first, gaussian(1, 0.5, diffusion, weight=0.7)), rows=64, steps=steps)
    as_flow = drawn(compose(first, gaussian(1, 0.5, flow, weight=0.7)), rows=64, steps=steps)
    torch.testing.assert_close(as_flow, as_diffusion, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["sample", "v"])
def test_prediction_kinds_of_one_law_are_interchangeable(kind):
    other = gaussian(1, 0.5, weight=0.7)
    expected = drawn(compose(gaussian(-1, 0.5, diffusion, weight=0.3), other), rows=64)
    found = drawn(compose(gaussian(-1, 0.5, diffusion, kind=kind, weight=0.3), other), rows=64)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_composing_beats_averaging_finished_actions_where_policies_have_modes():
    first, second = flow([-1, 0], [0.1, 0.1], weight=0.5), flow([0, 1], [0.1, 0.1], weight=0.5)
    shares = {}
    for name, settings in {"ode": {"sampler": "ode"}, "sde": {"sampler": "sde"}, "average": {"operator": "average"}}.items():
        operator = settings.pop("operator", "convex")
        actions = drawn(compose(first, second, operator=operator), rows=10_000, steps=200, **settings)
        shares[name] = float((actions.abs() < 0.3).float().mean()), float(((actions.abs() > 0.3) & (actions.abs() < 0.7)).float().mean())
    assert shares["ode"][0] == pytest.approx(0.71, abs=0.02)
    assert shares["sde"][0] == pytest.approx(0.86, abs=0.02)
    assert shares["ode"][1] == pytest.approx(0.27, abs=0.03)
    assert shares["sde"][1] == pytest.approx(0.13, abs=0.03)
    assert shares["average"][1] == pytest.approx(0.50, abs=0.02)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_policies_with_other_normalisers_compose_exactly_in_raw_units(first, second, weight):
    composer = compose(gaussian(0.3, 0.2, first, weight=weight), gaussian(0.5, 0.2, second, offset=0.2, scale=1.3, weight=1 - weight))
    mean, std = affine(composer, steps=100)
    assert mean == pytest.approx(0.3 * weight + 0.5 * (1 - weight), abs=2e-3)
    assert std == pytest.approx(0.2, abs=2e-3)


def test_a_single_policy_keeps_its_law_whatever_its_normaliser():
    assert affine(compose(gaussian(0.7, 0.05, offset=0.5, scale=0.25)), steps=100) == pytest.approx((0.7, 0.05), abs=2e-3)


@pytest.mark.parametrize("operator", ["convex", "or", "fkc"])
def test_the_same_policy_twice_is_that_policy(operator):
    pair = compose(gaussian(0.3, 0.4, weight=0.35), gaussian(0.3, 0.4, weight=0.65), operator=operator)
    single = compose(gaussian(0.3, 0.4), operator=operator)
    torch.testing.assert_close(
        drawn(pair, rows=32, steps=20, sampler="sde"), drawn(single, rows=32, steps=20, sampler="sde"), atol=1e-5, rtol=0
    )


def test_a_weight_of_zero_never_calls_its_member_and_changes_no_bit():
    def never(x, t, condition):
        raise AssertionError("called")

    first = gaussian(0.4, 0.3, diffusion, weight=1.0)
    idle = Member(predict=never, kind="velocity", path=RectifiedFlow(), weight=0.0, offset=5.0, scale=3.0, encode=never)
    alone = compose(gaussian(0.4, 0.3, diffusion))
    for sampler in ("ode", "sde"):
        assert torch.equal(drawn(compose(first, idle), rows=8, sampler=sampler), drawn(alone, rows=8, sampler=sampler))


def test_the_order_of_members_does_not_matter():
    first, second = gaussian(-1, 0.5, diffusion, weight=0.3), gaussian(1, 0.8, offset=0.3, scale=2.0, weight=0.7)
    torch.testing.assert_close(drawn(compose(first, second), rows=16), drawn(compose(second, first), rows=16), atol=1e-5, rtol=0)


def test_rows_do_not_depend_on_their_neighbours():
    composer = compose(gaussian(-1, 0.5, diffusion, weight=0.3), gaussian(1, 0.5, weight=0.7))
    generators = lambda rows: [torch.Generator().manual_seed(row) for row in rows]  # noqa: E731
    together = composer.sample((8, 4, 2), steps=10, sampler="sde", generator=generators(range(8)))
    alone = composer.sample((1, 4, 2), steps=10, sampler="sde", generator=generators([5]))
    torch.testing.assert_close(alone[0], together[5], atol=1e-6, rtol=0)


def test_the_reference_code_is_reproduced_on_a_shared_scheduler():
    scheduler = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=True, variance_type="fixed_small")
    torch.manual_seed(3)
    nets = [torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)) for _ in range(2)]

    def predict(net):
        return lambda x, t, condition: net(torch.cat([x, (t / 100).reshape(-1, 1, 1).expand(len(x), x.shape[1], 1).to(x)], -1))

    # The loop of get_composed_action, written out: one scheduler, one noise, eps = w1·eps1 + w2·eps2.
    generator = torch.Generator().manual_seed(0)
    action = torch.randn(5, 8, 3, generator=generator)
    scheduler.set_timesteps(100)
    with torch.no_grad():
        for t in scheduler.timesteps:
            noise = 0.4 * predict(nets[0])(action, t.expand(5), None) + 0.6 * predict(nets[1])(action, t.expand(5), None)
            action = scheduler.step(noise, t, action, generator=generator).prev_sample

    path = VariancePreserving(scheduler.alphas_cumprod)
    members = [Member(predict=predict(net), kind="epsilon", path=path, weight=w) for net, w in zip(nets, (0.4, 0.6), strict=True)]
    found = sample_with_scheduler(Composer(members), scheduler, (5, 8, 3), steps=100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, action, atol=2e-6, rtol=0)


def test_disagreement_is_the_divergence_between_paths():
    """For two policies of one variance it is the integral that Girsanov's theorem gives: w(1 − w)·(μ1 − μ2)²/(2 s²) for the full path."""
    composer = compose(gaussian(-1, 0.5, weight=0.3), gaussian(1, 0.5, weight=0.7))
    drawn = composer.compose((3, 1, 1), steps=4000, generator=torch.Generator().manual_seed(0))
    # ∫ ½·w(1−w)·(Δ/(s²+r²))² d(r²) from 0 to ∞ = ½·w(1−w)·Δ²/s²
    torch.testing.assert_close(drawn.disagreement, torch.full((3,), 0.5 * 0.21 * 4 / 0.25), rtol=0.02, atol=0)
    same = compose(gaussian(1, 0.5, weight=0.3), gaussian(1, 0.5, diffusion, weight=0.7))
    assert same.compose((3, 1, 1), steps=20).disagreement.max() < 1e-3


def test_evaluations_and_latency_are_counted_for_each_member():
    composer = compose(gaussian(-1, 0.5, weight=0.3, name="slow", every=4), gaussian(1, 0.5, weight=0.7, name="fast"))
    drawn = composer.compose((3, 2, 1), steps=10)
    assert drawn.evaluations == {"slow": 9, "fast": 30}
    assert all(seconds > 0 for seconds in drawn.latency_s.values())


def test_a_member_asked_every_other_step_still_gives_nearly_its_law():
    exact = compose(gaussian(-1, 0.5, weight=0.3), gaussian(1, 0.5, weight=0.7))
    rare = compose(gaussian(-1, 0.5, weight=0.3, every=2), gaussian(1, 0.5, weight=0.7))
    mean, std = affine(rare, steps=200)
    assert (mean, std) == pytest.approx(affine(exact, steps=200), abs=0.01)


def test_grids_of_a_discrete_policy_hold_its_own_timesteps():
    seen = []
    member = gaussian(0, 1, diffusion)
    spy = Member(predict=lambda x, t, c: seen.append(int(t[0])) or member.predict(x, t, c), kind="epsilon", path=member.path)
    compose(spy).sample((1, 1, 1), steps=100)
    assert seen == list(range(99, -1, -1))
    seen.clear()
    compose(spy).sample((1, 1, 1), steps=10)
    assert len(seen) == 10
    assert seen[0] == 99
    assert math.isclose(float(member.path.times()[seen[5]]), 0.5, abs_tol=0.01)


def test_of_two_discrete_policies_the_coarser_owns_the_grid():
    """A coarse network asked between its timesteps would answer for another noise level; a fine one has a timestep nearby."""
    asked = {100: [], 1000: []}

    def spy(timesteps, **more):
        member = gaussian(0, 0.3, diffusion, alphas=squaredcos(timesteps))
        record = asked[timesteps]
        return Member(predict=lambda x, t, c: record.append(int(t[0])) or member.predict(x, t, c), kind="epsilon", path=member.path, **more)

    compose(spy(1000, weight=0.5), spy(100, weight=0.5)).sample((1, 1, 1), steps=7)
    levels = VariancePreserving(squaredcos()).times()[asked[100]]
    near = VariancePreserving(squaredcos(1000)).times()[asked[1000]]
    torch.testing.assert_close(near, levels, atol=6e-4, rtol=0)
    start = float(levels[0])
    gap = VariancePreserving(squaredcos()).times().diff().max() / 2
    assert all(abs(float(level) - start * (1 - k / 7)) <= gap for k, level in enumerate(levels))
