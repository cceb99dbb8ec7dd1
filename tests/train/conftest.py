"""Fixtures of the trainer's tests: a pipeline on disk, made once, and accelerate's state made anew for each test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # toys.py

import toys


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    toys.reset_accelerate()
    toys.Bright.event, toys.Bright.calls = staticmethod(lambda calls: None), 0
    yield
    toys.reset_accelerate()


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A random Stable Diffusion 3 pipeline of 8 x 8 pixels."""
    from flowrl.models import TinySD3

    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    TinySD3(vocabulary=("red", "blue"), layers=2, heads=2).build().save_pretrained(folder)
    return folder
