"""Fields and inputs that the sampler tests share."""

from dataclasses import dataclass, field

import pytest
import torch

from flowrl.flow import Condition
from flowrl.shapes import expand_time

STATE = (2, 3)


@dataclass(frozen=True)
class CurvedField:
    """Nonlinear in the state, mixes its entries, and depends on the time and on the prompt."""

    mix: torch.Tensor = field(default_factory=lambda: torch.randn(6, 6, generator=torch.Generator().manual_seed(5)) / 3)

    def __call__(self, x_t, t, condition):
        bias = condition.tensors["prompt"].reshape(-1, 1)
        mixed = torch.sin(x_t.flatten(1) @ self.mix.to(x_t.dtype) + bias).reshape(x_t.shape)
        return x_t - 0.7 * mixed * (1 + expand_time(t, x_t))


@dataclass
class Recorded:
    """A field that remembers what it was called with."""

    inner: object
    sizes: list = field(default_factory=list)
    times: list = field(default_factory=list)

    def __call__(self, x_t, t, condition):
        self.sizes.append(len(x_t))
        self.times.append(torch.as_tensor(t).expand(len(x_t)).clone())
        assert len(condition) == len(x_t)
        return self.inner(x_t, t, condition)


@pytest.fixture
def curved():
    return CurvedField()


@pytest.fixture
def recorded():
    return Recorded


@pytest.fixture
def prompts():
    """A condition of so many prompts, no two alike."""
    return lambda count: Condition({"prompt": torch.linspace(-0.5, 0.9, count)})


@pytest.fixture
def noise():
    """Initial noise of so many rows."""
    return lambda rows, seed=3: torch.randn(rows, *STATE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def generators():
    """One generator per prompt."""
    return lambda count, first=0: [torch.Generator().manual_seed(100 + prompt) for prompt in range(first, first + count)]
