"""Processes: their schedules, what the network is asked for, and which time it sees."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from flowrl.flow import RectifiedFlow
from robot.learning import Diffusion, Flow

DATA = torch.tensor([[[2.0, -1.0], [0.5, 3.0]]])
NOISE = torch.tensor([[[-1.0, 0.0], [1.0, 2.0]]])
FEATURES = torch.zeros(1, 3)


@pytest.mark.parametrize(
    ("schedule", "timesteps"), [("squaredcos_cap_v2", 100), ("squaredcos_cap_v2", 20), ("linear", 1000), ("scaled_linear", 1000)]
)
def test_the_schedules_are_those_of_diffusers(schedule, timesteps):
    theirs = DDPMScheduler(num_train_timesteps=timesteps, beta_schedule=schedule).alphas_cumprod.double()
    torch.testing.assert_close(Diffusion(timesteps=timesteps, schedule=schedule).path.alphas_cumprod, theirs, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize(("schedule", "alpha_bar"), [("linear", "0.364"), ("scaled_linear", "0.485")])
def test_a_schedule_that_never_reaches_noise_is_refused_before_training(schedule, alpha_bar):
    with pytest.raises(ValueError, match=f"{schedule} with 100 timesteps ends at alpha_bar = {alpha_bar}.*use squaredcos_cap_v2"):
        Diffusion(timesteps=100, schedule=schedule)


@pytest.mark.parametrize("predict", ["epsilon", "sample", "v"])
def test_a_diffusion_network_is_asked_for_its_kind_at_the_noisy_state_and_scaled_time(predict):
    process, k = Diffusion(predict=predict), 60
    a, b = process.path.alphas_cumprod[k].sqrt().float(), (1 - process.path.alphas_cumprod[k]).sqrt().float()
    target = {"epsilon": NOISE, "sample": DATA, "v": a * NOISE - b * DATA}[predict]

    def network(x, time, features):
        torch.testing.assert_close(x, a * DATA + b * NOISE)
        assert time.item() == pytest.approx(1000 * 60 / 99)
        assert features is FEATURES
        return target + torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])

    error = process.error(network, DATA, NOISE, torch.tensor([k]), FEATURES)
    torch.testing.assert_close(error, torch.tensor([(1.0 + 9.0) / 4]))


@pytest.mark.parametrize(("reverse", "seen", "sign"), [(False, 300.0, 1.0), (True, 700.0, -1.0)], ids=["1 is noise", "1 is data"])
def test_a_flow_network_is_asked_for_the_velocity_of_its_own_direction_of_time(reverse, seen, sign):
    def network(x, time, features):
        torch.testing.assert_close(x, 0.7 * DATA + 0.3 * NOISE)
        assert time.item() == pytest.approx(seen)
        return sign * (NOISE - DATA) + 2.0

    process = Flow(reversed_time=reverse)
    error = process.error(network, DATA, NOISE, torch.tensor([0.3]), FEATURES)
    torch.testing.assert_close(error, torch.tensor([4.0]))


def test_the_predictor_gives_flowrls_velocity_whatever_the_networks_direction():
    x, t = torch.randn(2, 4, 2), torch.tensor([0.2, 0.9])
    forward = Flow().predictor(lambda x, time, features: x + time[:, None, None])
    backward = Flow(reversed_time=True).predictor(lambda x, time, features: -(x + 1000 - time[:, None, None]))
    torch.testing.assert_close(forward(x, t, FEATURES), x + 1000 * t[:, None, None])
    torch.testing.assert_close(backward(x, t, FEATURES), forward(x, t, FEATURES))
    assert isinstance(Flow().path, RectifiedFlow)


def test_training_times_cover_every_timestep_equally():
    times = Diffusion(timesteps=4).times(40_000, torch.Generator().manual_seed(0))
    assert times.dtype == torch.int64
    for step in range(4):
        assert (times == step).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_training_times_of_a_flow_are_uniform_or_logit_normal():
    uniform = Flow().times(20_000, torch.Generator().manual_seed(0))
    assert [uniform.quantile(q).item() for q in (0.1, 0.5, 0.9)] == pytest.approx([0.1, 0.5, 0.9], abs=0.012)
    middle = Flow(logit_std=1.0).times(20_000, torch.Generator().manual_seed(0))
    below = 1 / (1 + math.exp(1.2816))  # the 10 % quantile of N(0, 1) is -1.2816
    assert [middle.quantile(q).item() for q in (0.1, 0.5)] == pytest.approx([below, 0.5], abs=0.012)


def test_the_loss_draws_times_and_noise_from_its_generator_alone():
    draw = [
        Diffusion().loss(lambda x, time, features: x, DATA.expand(8, 2, 2), torch.Generator().manual_seed(seed), FEATURES.expand(8, 3))
        for seed in (1, 1, 2)
    ]
    assert draw[0].shape == (8,)
    torch.testing.assert_close(draw[0], draw[1], rtol=0, atol=0)
    assert not torch.equal(draw[0], draw[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Diffusion(timesteps=1), "at least 2 timesteps, got 1"),
        (lambda: Flow(logit_std=0.0), "logit_std must be > 0, got 0.0; null draws uniform times"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
