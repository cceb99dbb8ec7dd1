"""Paths, prediction conversions, and the change of coordinates between diffusion and flow."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.flow import ODE, PREDICTIONS, Condition, DiffusionField, Endpoints, FlowSDE, RectifiedFlow, VariancePreserving
from flowrl.testing import GaussianField

ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
VP = VariancePreserving(ALPHA_BAR)
MEAN, STD = 1.5, 0.4
every_kind = pytest.mark.parametrize("kind", PREDICTIONS)


def ends(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Endpoints(*(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)))


def textbook(kind, data, noise, a, b):
    """What each kind of network predicts, from its definition."""
    return {
        "velocity": noise - data,
        "epsilon": noise,
        "sample": data,
        "v": a * noise - b * data,  # progressive distillation: alpha·eps − sigma·x
        "score": -(a * data + b * noise - a * data) / b**2,  # gradient of log N(x; a·data, b²)
    }[kind]


def test_rectified_flow_point_by_hand():
    point = RectifiedFlow().sample(torch.tensor([[2.0]]), torch.tensor([[-1.0]]), 0.25)
    assert point.x_t.item() == pytest.approx(0.75 * 2 - 0.25)
    assert point.endpoints.velocity.item() == -3


def test_variance_preserving_point_is_ddpm_forward_diffusion():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    e = ends(3, 5)
    steps = torch.tensor([0, 417, 999])
    ours = VariancePreserving(scheduler.alphas_cumprod).sample(e.data, e.noise, steps).x_t
    torch.testing.assert_close(ours, scheduler.add_noise(e.data, e.noise, steps), rtol=1e-6, atol=1e-6)


@every_kind
@pytest.mark.parametrize("timestep", [0, 10, 500, 999])
def test_diffusion_predictions_give_back_the_endpoints(kind, timestep):
    e, alpha_bar = ends(2, 3), ALPHA_BAR[timestep]
    a, b = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    prediction = textbook(kind, e.data, e.noise, a, b)
    found = VP.endpoints(prediction, a * e.data + b * e.noise, timestep, kind)
    torch.testing.assert_close(found.data, e.data, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.noise, e.noise, rtol=0, atol=1e-8)
    torch.testing.assert_close(VP.predict(found, timestep, kind), prediction, rtol=1e-8, atol=1e-8)


@every_kind
@given(t=st.floats(0.01, 0.99))
def test_flow_predictions_give_back_the_endpoints(kind, t):
    e = ends(2, 3)
    prediction = textbook(kind, e.data, e.noise, 1 - t, t)
    found = RectifiedFlow().endpoints(prediction, (1 - t) * e.data + t * e.noise, t, kind)
    torch.testing.assert_close(found.data, e.data, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.noise, e.noise, rtol=0, atol=1e-9)
    torch.testing.assert_close(RectifiedFlow().predict(found, t, kind), prediction, rtol=1e-8, atol=1e-8)


def test_a_velocity_fixes_the_endpoints_at_both_ends_of_the_path():
    e = ends(2, 3)
    for t, x in ((0.0, e.data), (1.0, e.noise)):
        found = RectifiedFlow().endpoints(e.velocity, x, t)
        torch.testing.assert_close(found.data, e.data)
        torch.testing.assert_close(found.noise, e.noise)


@pytest.mark.parametrize("timestep", [0, 300, 999])
def test_a_diffusion_state_becomes_the_flow_state_of_the_same_ends(timestep):
    """t = sqrt(1−ᾱ)/(sqrt(ᾱ)+sqrt(1−ᾱ)), x_rf = x_vp/(sqrt(ᾱ)+sqrt(1−ᾱ)): the legend's formula, from numpy."""
    e, alpha_bar = ends(2, 3), float(ALPHA_BAR[timestep])
    a, b = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    t, x_vp = b / (a + b), a * e.data + b * e.noise
    assert VP.times()[timestep].item() == pytest.approx(t, rel=1e-12)
    torch.testing.assert_close(
        VP.flow_time(timestep, e.data), torch.full((1, 1), t, dtype=torch.float64).squeeze().expand(()).reshape(1, 1)
    )
    torch.testing.assert_close(VP.to_flow(x_vp, timestep), (1 - t) * e.data + t * e.noise)
    torch.testing.assert_close(VP.from_flow(VP.to_flow(x_vp, timestep), timestep), x_vp)
    own = VP.flow_coefficients(t, e.data)
    torch.testing.assert_close(own[0].squeeze(), torch.tensor(a, dtype=torch.float64))
    torch.testing.assert_close(own[1].squeeze(), torch.tensor(b, dtype=torch.float64))


def test_a_noise_level_near_one_keeps_its_share_of_data_in_float32():
    """At the last timestep a = 0.006; subtracting a float32 time from 1 would lose two of its seven digits, and more on other schedules."""
    last = len(VP.alphas_cumprod) - 1
    a, b = VP.flow_coefficients(float(VP.times()[last]), torch.zeros(1, 2))
    exact = VP.coefficients(last, torch.zeros(1, 2, dtype=torch.float64))
    assert a.dtype == b.dtype == torch.float32
    torch.testing.assert_close(a.double(), exact[0], rtol=2e-7, atol=0)
    torch.testing.assert_close(b.double(), exact[1], rtol=2e-7, atol=0)


def test_every_noise_level_finds_its_own_timestep_again():
    assert torch.equal(VP.own_time(VP.times()), torch.arange(1000))
    between = 0.9 * VP.times()[500] + 0.1 * VP.times()[501]
    assert VP.own_time(between) == 500
    assert VP.own_time(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


def exact_network(kind):
    """What a VP network of this kind predicts for data N(MEAN, STD²), derived in its own coordinates."""

    def predict(x, timestep, condition):
        alpha_bar = ALPHA_BAR[timestep.long()].reshape(-1, *(1,) * (x.ndim - 1))
        a, b = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        centred = (x - a * MEAN) / (a**2 * STD**2 + b**2)
        noise, data = b * centred, MEAN + a * STD**2 * centred
        return {"epsilon": noise, "sample": data, "v": a * noise - b * data, "score": -centred, "velocity": noise - data}[kind]

    return predict


@every_kind
def test_a_diffusion_model_has_the_velocity_of_the_flow_model_of_the_same_data(kind):
    timesteps = torch.tensor([3, 400, 990])
    t = VP.times()[timesteps]
    x_t = ends(3, 4).noise
    velocity = DiffusionField(network=exact_network(kind), path=VP, kind=kind)(x_t, t, Condition(rows=3))
    torch.testing.assert_close(velocity, GaussianField(mean=MEAN, std=STD)(x_t, t), rtol=1e-7, atol=1e-7)


@every_kind
def test_a_diffusion_and_a_flow_model_draw_the_same_samples_from_the_same_noise(kind):
    grid = VP.times()[[999, 800, 600, 400, 200, 50, 0]]
    ours, theirs = (ends(4, 3).noise for _ in range(2))
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    flow, diffusion = GaussianField(mean=MEAN, std=STD), DiffusionField(network=exact_network(kind), path=VP, kind=kind)
    for t, s in pairwise(grid):
        sde = FlowSDE(noise_level=0.5)
        ours = sde.transition(flow(ours, t), ours, t, s).sample(generators[0])
        theirs = sde.transition(diffusion(theirs, t, Condition(rows=4)), theirs, t, s).sample(generators[1])
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)


def test_euler_in_flow_coordinates_is_ddim():
    """A second route: diffusers' deterministic DDIM on the same network, from the same noise, ends where our Euler steps end."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    path, network = VariancePreserving(scheduler.alphas_cumprod), exact_network("epsilon")
    field = DiffusionField(network=network, path=path, kind="epsilon")
    x_vp = ends(5, 3).noise
    x_t = path.to_flow(x_vp, 999)
    grid = [*path.times()[scheduler.timesteps], torch.tensor(0.0)]
    for timestep, (t, s) in zip(scheduler.timesteps, pairwise(grid), strict=True):
        x_vp = scheduler.step(network(x_vp, timestep[None], None), timestep, x_vp).prev_sample
        x_t = ODE().transition(field(x_t, t, Condition(rows=5)), x_t, t, s).mean
    torch.testing.assert_close(x_t, x_vp, rtol=1e-5, atol=1e-5)


RISING, FLAT, ONE, ZERO, MATRIX, NAN = [0.5, 0.9], [0.9, 0.9], [1.0, 0.5], [0.9, 0.0], [[0.9, 0.5]], [0.9, float("nan")]


@pytest.mark.parametrize("alphas", [RISING, FLAT, ONE, ZERO, MATRIX, NAN], ids=["rising", "flat", "one", "zero", "matrix", "NaN"])
def test_a_schedule_that_is_not_decreasing_inside_0_and_1_is_refused(alphas):
    with pytest.raises(ValueError, match="alphas_cumprod must be one-dimensional, strictly decreasing and inside"):
        VariancePreserving(torch.tensor(alphas))


@pytest.mark.parametrize("timestep", [-1, 1000, 3.5])
def test_a_timestep_outside_the_schedule_is_refused(timestep):
    with pytest.raises(ValueError, match=r"timesteps must be integers in 0 … 999"):
        VP.coefficients(timestep, torch.zeros(2, 3))


def test_noise_levels_above_the_schedule_are_refused():
    with pytest.raises(
        ValueError, match=r"largest noise level is 0\.99\d+, got t = 1\.0+; start the grid there, as samplers.DiffusionGrid does"
    ):
        DiffusionField(network=exact_network("epsilon"), path=VP, kind="epsilon")(torch.zeros(2, 3), 1.0, Condition(rows=2))


def test_unknown_kinds_and_mismatched_shapes_are_refused():
    e = ends(2, 3)
    for call in (VP.endpoints, lambda p, x, t, kind: VP.predict(e, t, kind)):
        with pytest.raises(ValueError, match="unknown prediction kind 'epsilom'; did you mean 'epsilon'"):
            call(e.data, e.data, 5, "epsilom")
    with pytest.raises(ValueError, match="unknown prediction kind 'eps"):
        DiffusionField(network=exact_network("epsilon"), path=VP, kind="eps")
    with pytest.raises(ValueError, match=r"same shape, got \(1, 3\) and \(2, 3\)"):
        VP.endpoints(e.data[:1], e.data, 5, "sample")
    with pytest.raises(ValueError, match=r"same shape, got \(1, 3\) and \(2, 3\)"):
        RectifiedFlow().sample(e.data[:1], e.noise, 0.5)


def test_per_token_times_put_every_token_on_its_own_point():
    e = ends(2, 3, 4)
    t = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.4, 0.6]], dtype=torch.float64)
    point = RectifiedFlow().sample(e.data, e.noise, t).x_t
    torch.testing.assert_close(point, (1 - t[..., None]) * e.data + t[..., None] * e.noise)
