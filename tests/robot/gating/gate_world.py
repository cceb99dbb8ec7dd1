"""A small joint transformer with random weights, and chunks of it under way."""

import torch

from flowrl.flow import Condition
from flowrl.shapes import randn, seeded_generator
from robot.world.denoising import Denoising, JointField
from robot.world.layout import Layout
from robot.world.network import MixtureOfTransformers

LAYOUT = Layout(frames=3, tokens=2, channels=4, horizon=5, dof=2)


def network(*, video_sees_action=True):
    torch.manual_seed(5)
    config = MixtureOfTransformers(video_width=16, action_width=16, layers=2, heads=2, head_width=8, video_sees_action=video_sees_action)
    return config.build(LAYOUT, observed=1)


def begin(rows=6, seed=0, net=None):
    observed = randn((rows, 1, LAYOUT.tokens, LAYOUT.channels), seeded_generator(seed, 1), device="cpu")
    field = JointField(network=network() if net is None else net)
    return Denoising(field, LAYOUT, Condition({"observed": observed}), LAYOUT.noise(rows, seeded_generator(seed)))


def stirred(gate, seed=11):
    """The same gate with a last layer that is not zero."""
    with torch.no_grad():
        for index, weight in enumerate(gate.network.last.parameters()):
            weight.copy_(0.5 * randn(weight.shape, seeded_generator(seed, index), device="cpu"))
    return gate


def noise(gate, rows=6, seed=2):
    return lambda k: randn((rows, gate.columns), seeded_generator(seed, k), device="cpu")


def run(schedule, state):
    return state.follow(schedule)
