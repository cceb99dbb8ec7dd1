"""Backbones: shapes, what they depend on, sizes they refuse."""

import pytest
import torch

from flowrl.errors import ConfigError
from robot.learning import ActionMLP, ActionTransformer, ActionUNet
from robot.learning.blocks import TimeEmbedding

CONFIGS = [
    ActionUNet(channels=(8, 16, 16), groups=4, time_width=8),
    ActionTransformer(width=16, layers=2),
    ActionMLP(width=16, layers=2, time_width=8),
]
IDS = [type(config).__name__ for config in CONFIGS]


@pytest.fixture(params=CONFIGS, ids=IDS)
def network(request):
    return request.param.build(3, 8, 5)


def inputs():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 8, 3, generator=generator), torch.tensor([100.0, 900.0]), torch.randn(2, 5, generator=generator)


def test_every_input_matters_everywhere(network):
    """The sensitivity of each output step to each input, by automatic differentiation, is nowhere zero."""
    x, time, features = inputs()
    parts = [value.clone().requires_grad_() for value in (x, time, features)]
    for step in range(8):
        output = network(*parts)
        assert output.shape == (2, 8, 3)
        gradients = torch.autograd.grad(output[:, step].square().sum(), parts)
        assert all(bool((gradient.reshape(2, -1).abs().amax(1) > 0).all()) for gradient in gradients)
        reach = gradients[0].abs().amax(-1) > 0
        assert bool(reach[:, max(0, step - 1) : step + 2].all())


def test_a_row_does_not_depend_on_its_neighbours(network):
    x, time, features = inputs()
    alone = torch.cat([network(x[i : i + 1], time[i : i + 1], features[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(network(x, time, features), alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_is_trained(network):
    network(*inputs()).square().sum().backward()
    assert [
        name for name, parameter in network.named_parameters() if parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)
    ] == []


@pytest.mark.parametrize("horizon", [1, 5, 7])
@pytest.mark.parametrize(
    "config", [ActionTransformer(width=16), ActionMLP(width=16), ActionUNet(channels=(8,), groups=4, time_width=8)], ids=str
)
def test_any_horizon_fits_what_does_not_halve_it(config, horizon):
    assert config.build(2, horizon, 4)(torch.zeros(1, horizon, 2), torch.zeros(1), torch.zeros(1, 4)).shape == (1, horizon, 2)


@pytest.mark.parametrize(("horizon", "fitting"), [(10, "8 or 12"), (3, "4")])
def test_a_unet_refuses_a_horizon_that_it_cannot_halve(horizon, fitting):
    with pytest.raises(ConfigError, match=f"halves the chunk 2 times, which a horizon of {horizon} does not allow; set horizon={fitting}"):
        ActionUNet(channels=(16, 16, 16)).build(2, horizon, 4)


def test_the_time_embedding_tells_neighbouring_diffusion_steps_apart():
    embedding = TimeEmbedding(64)
    waves = (torch.arange(100) * 1000 / 99)[:, None] * embedding.frequencies
    distance = torch.cdist(torch.cat([waves.sin(), waves.cos()], 1), torch.cat([waves.sin(), waves.cos()], 1))
    assert (distance + 10 * torch.eye(100)).min().item() > 0.5
    assert embedding.frequencies[0].item() == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ActionUNet(channels=()), r"ActionUNet.channels must be at least 1, got \(\)"),
        (lambda: ActionUNet(channels=(12,)), r"multiples of groups and larger, got channels=\(12,\) and groups=8"),
        (lambda: ActionUNet(channels=(8,)), r"multiples of groups and larger, got channels=\(8,\) and groups=8"),
        (lambda: ActionUNet(kernel=4), "an odd kernel and an even time_width, got 4 and 64"),
        (lambda: ActionTransformer(width=30), "width must be even and a multiple of heads, got width=30 and heads=4"),
        (lambda: ActionTransformer(layers=0), "ActionTransformer.layers must be at least 1, got 0"),
        (lambda: ActionMLP(time_width=3), "time_width must be even, got 3"),
    ],
)
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
