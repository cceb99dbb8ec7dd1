"""Exact networks for Gaussian laws and mixtures of them, one dimension at a time, and what a sampler makes of standard noise."""

import math

import torch
from diffusers import DDPMScheduler

from flowrl.flow import RectifiedFlow, VariancePreserving
from robot import Composer, Member


def squaredcos(timesteps=100):
    return DDPMScheduler(num_train_timesteps=timesteps, beta_schedule="squaredcos_cap_v2").alphas_cumprod


def data_of(z, r, means, stds, shares):
    """E[data | z] for z = data + r·noise and a mixture of Gaussians."""
    means, stds, shares = (torch.as_tensor(v, dtype=z.dtype) for v in (means, stds, shares))
    spread = stds**2 + r**2
    odds = torch.softmax(shares.log() - 0.5 * (z[..., None] - means) ** 2 / spread - 0.5 * spread.log(), -1)
    return (odds * (means + stds**2 / spread * (z[..., None] - means))).sum(-1)


def mixture(means, stds, shares=None, offset=0.0, scale=1.0):
    """The law in a normaliser's units."""
    shares = [1 / len(means)] * len(means) if shares is None else shares
    return [(m - offset) / scale for m in means], [s / scale for s in stds], shares


def diffusion(means, stds, shares=None, alphas=None, kind="epsilon", offset=0.0, scale=1.0, **more):
    """An exact network of a variance-preserving policy; it sees integer timesteps."""
    path = VariancePreserving(squaredcos() if alphas is None else alphas)
    law = mixture(means, stds, shares, offset, scale)

    def predict(x, timestep, condition):
        assert not timestep.is_floating_point()
        a, b = (c.to(x.dtype) for c in path.coefficients(timestep, x.double()))
        data = data_of((x / a).double(), (b / a).double()[..., None], *law)
        noise = ((x - a * data) / b).double()
        return {"epsilon": noise, "sample": data, "v": a * noise - b * data}[kind].to(x.dtype)

    return Member(predict=predict, kind=kind, path=path, offset=offset, scale=scale, **more)


def flow(means, stds, shares=None, offset=0.0, scale=1.0, **more):
    """An exact network of a rectified flow; it sees noise levels in [0, 1]."""
    law = mixture(means, stds, shares, offset, scale)

    def predict(x, t, condition):
        t = t.double().reshape(-1, 1, 1)
        x = x.double()
        inner = t.clamp(max=1 - 1e-9)
        data = data_of(x / (1 - inner), (inner / (1 - inner))[..., None], *law)
        return ((x - data) / t).float()

    return Member(predict=predict, kind="velocity", path=RectifiedFlow(), offset=offset, scale=scale, **more)


def affine(composer, steps=100, sampler="ode", **settings):
    """Mean and standard deviation of the law that a noise-free sampler makes of Gaussian members: its action is affine in its noise."""
    shape = (2, 1, 1)
    actions = composer.sample(shape, steps=steps, sampler=sampler, generator=torch.Generator().manual_seed(0), **settings)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    slope = float((actions[1] - actions[0]) / (noise[1] - noise[0]))
    return float(actions[0] - slope * noise[0]), slope


def drawn(composer, rows=40_000, steps=100, seed=0, **settings):
    return composer.sample((rows, 1, 1), steps=steps, generator=torch.Generator().manual_seed(seed), **settings)[:, 0, 0]


def gaussian(mean, std, make=flow, **more):
    return make([mean], [std], **more)


def compose(*members, **settings):
    return Composer(list(members), **settings)


def product(means, stds, weights):
    """Mean and standard deviation of ``Π N(m, s²)^w``."""
    precision = sum(w / s**2 for w, s in zip(weights, stds, strict=True))
    return sum(w * m / s**2 for w, m, s in zip(weights, means, stds, strict=True)) / precision, math.sqrt(1 / precision)
