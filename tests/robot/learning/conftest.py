"""``demos``: small jobs for the tests of learning, importable beside this file; accelerate's state is made anew for each test."""

import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

sys.path.insert(0, str(Path(__file__).parent))  # demos.py


@pytest.fixture(autouse=True)
def _fresh_accelerate(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
