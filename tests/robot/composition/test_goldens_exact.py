"""Closed forms of the specification of GPC, section 8, on the steps of diffusers' schedulers and in double precision."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from laws import compose, diffusion, flow, gaussian, squaredcos

from flowrl.flow import PREDICTIONS, Ancestral, RectifiedFlow
from robot import Composer, Member, sample_with_scheduler
from robot.composition.operators import And, Convex, Or, Step


def test_predictions_of_every_kind_combine_alike():
    """G1: with weights that sum to one, (alpha, sigma) = (0.6, 0.8) and w = 0.3."""
    a, b, w = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64), 0.3
    x, *noises = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kinds = {  # what a network of the kind says where the noise is e
        "epsilon": lambda e: e,
        "sample": lambda e: (x - b * e) / a,
        "v": lambda e: a * e - b * (x - b * e) / a,
        "score": lambda e: -e / b,
        "velocity": lambda e: e - (x - b * e) / a,
    }
    assert kinds.keys() == PREDICTIONS.keys()
    for kind, said in kinds.items():
        ends = PREDICTIONS[kind](w * said(noises[0]) + (1 - w) * said(noises[1]), x, a, b)
        torch.testing.assert_close(ends.noise, w * noises[0] + (1 - w) * noises[1], atol=1e-12, rtol=0)


def on_thousand_steps(make, stds, weight, rows):
    """Chunks of N(-1, ·) as a diffusion and N(1, ·) as a flow policy in the scheduler's own steps, and the noise that they started from."""
    scheduler = make(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", clip_sample=False)
    first = gaussian(-1, stds[0], diffusion, alphas=squaredcos(1000), weight=weight)
    pair = compose(first, gaussian(1, stds[1], flow, weight=1 - weight))
    actions = sample_with_scheduler(pair, scheduler, (rows, 1, 1), steps=1000, generator=torch.Generator().manual_seed(0))
    return actions[:, 0, 0], torch.randn(rows, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize(("stds", "weight", "law"), [((0.5, 0.5), 0.3, (0.3998, 0.5013)), ((0.5, 1.0), 0.5, (-0.2262, 0.7092))])
def test_a_thousand_steps_of_ddim_end_at_the_law_of_the_ode(stds, weight, law):
    """G2, G3; without noise on the way an action is affine in the noise that it starts from. The specification's are of finite samples."""
    actions, noise = on_thousand_steps(DDIMScheduler, stds, weight, 2)
    slope = float((actions[1] - actions[0]) / (noise[1] - noise[0]))
    assert (float(actions[0] - slope * noise[0]), slope) == pytest.approx(law, abs=4e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("stds", "weight", "law"), [((0.5, 0.5), 0.3, (0.398, 0.496)), ((0.5, 1.0), 0.5, (-0.3346, 0.6742))])
def test_a_thousand_steps_of_ddpm_end_at_the_law_of_the_reverse_sde(stds, weight, law):
    """G2, G3."""
    actions, _ = on_thousand_steps(DDPMScheduler, stds, weight, 6000)
    assert (float(actions.mean()), float(actions.std())) == pytest.approx(law, abs=0.03)


@pytest.mark.parametrize("make", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("clip", [True, False])
def test_with_all_the_weight_a_policy_draws_what_its_own_loop_draws(make, clip):
    """G11: the scheduler's own loop on the network itself; the other member is never called. Equal up to rounding, not to the bit."""
    scheduler = make(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=clip)
    own, member = make.from_config(scheduler.config), gaussian(0.4, 0.3, diffusion)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, 3, generator=generator)
    own.set_timesteps(100)
    for timestep in own.timesteps:
        noise = {"generator": generator} if make is DDPMScheduler else {}
        x = own.step(member.predict(x, timestep.expand(5), None), timestep, x, **noise).prev_sample

    def never(x, t, condition):
        raise AssertionError("called")

    idle = Member(predict=never, kind="velocity", path=RectifiedFlow(), weight=0.0, encode=never)
    pair = Composer([gaussian(0.4, 0.3, diffusion, weight=1.0), idle])
    found = sample_with_scheduler(pair, scheduler, (5, 8, 3), steps=100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, x, atol=1e-5, rtol=0)


def exact_velocity(x, t, mean, std):
    """Of the flow to ``N(mean, std²)`` in any number of dimensions, in the dtype of the state."""
    spread = (1 - t) ** 2 * std**2 + t**2
    return (t - (1 - t) * std**2) / spread * (x - (1 - t) * mean) - mean


def test_or_with_exact_densities_is_the_mixture_in_double_precision():
    """G9, to 1e-12: the score of the mixture is the posterior-weighted mean of the members' scores, and velocities go with them."""
    t, s, means, stds, shares = 0.6, 0.5, (-1.0, 1.5), (0.3, 0.6), (0.3, 0.7)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1)
    velocities = torch.stack([exact_velocity(x, t, m, q) for m, q in zip(means, stds, strict=True)])
    variances = [(1 - t) ** 2 * q**2 + t**2 for q in stds]
    density = torch.stack([-0.5 * (x - (1 - t) * m) ** 2 / v - 0.5 * math.log(v) for m, v in zip(means, variances, strict=True)])[..., 0, 0]
    joint = torch.stack([w * torch.exp(d) for w, d in zip(shares, density, strict=True)])
    score = sum(j / joint.sum(0) * -(x[:, 0, 0] - (1 - t) * m) / v for j, m, v in zip(joint, means, variances, strict=True))
    seen = []
    operator = Or()
    operator._log_density = density
    weights = torch.tensor(shares, dtype=torch.float64).reshape(2, 1, 1, 1)
    operator.step(Step(velocities, weights, x, t, s, lambda v: seen.append(v) or v, Ancestral(noise_level=1.0), None, 1))
    found = -(x + (1 - t) * seen[0])[:, 0, 0] / t
    torch.testing.assert_close(found, score, atol=1e-12, rtol=0)


def test_and_ends_where_both_densities_are_equal_and_the_average_does_not():
    """G9: N(±1, 0.4²) in the plane; mean |log q1 − log q2| at noise ratio r = 2e-3 is 0.08 with AND, about 4 with the average."""
    gaps = {}
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    ratios = torch.logspace(1.5, math.log10(2e-3), 401, dtype=torch.float64)
    times = [1.0, *(ratios / (1 + ratios)).tolist()]
    for name, make in {"and": And, "average": Convex}.items():
        operator, generator = make(), torch.Generator().manual_seed(0)
        x = torch.randn(2000, 1, 2, generator=generator, dtype=torch.float64)
        for t, s in itertools.pairwise(times):
            velocities = torch.stack([exact_velocity(x, t, mean, 0.4) for mean in means])
            step = Step(velocities, torch.full((2, 1, 1, 2), 0.5), x, t, s, lambda v: v, Ancestral(noise_level=1.0), generator, 2)
            x = operator.step(step)
        spread = (1 - s) ** 2 * 0.16 + s**2
        logs = [-0.5 * ((x[:, 0] - (1 - s) * mean) ** 2).sum(1) / spread for mean in means]
        gaps[name] = float((logs[0] - logs[1]).abs().mean())
    assert gaps["and"] < 0.12
    assert gaps["average"] == pytest.approx(4.03, abs=0.3)
