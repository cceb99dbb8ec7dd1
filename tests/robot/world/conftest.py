"""Fixtures of small world-action networks; ``small_worlds`` is importable beside this file."""

import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from flowrl.flow import Condition

sys.path.insert(0, str(Path(__file__).parent))  # small_worlds.py
from small_worlds import LAYOUT, ROWS, network


@pytest.fixture(params=[True, False], ids=["frames see actions", "frames do not"])
def either_network(request):
    return network(video_sees_action=request.param).eval().requires_grad_(requires_grad=False)


@pytest.fixture
def noise():
    return LAYOUT.noise(ROWS, torch.Generator().manual_seed(1))


@pytest.fixture
def condition():
    generator = torch.Generator().manual_seed(2)
    return Condition({"observed": torch.randn(ROWS, 1, 2, 3, generator=generator), "features": torch.randn(ROWS, 3, generator=generator)})


@pytest.fixture
def quick_runs(monkeypatch):
    """Training runs on the CPU without a learning curve; accelerate's state is made anew afterwards."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("robot.learning.report.write_curve", lambda record, curves: None)
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
