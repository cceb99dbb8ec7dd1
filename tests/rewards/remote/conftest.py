"""Makes ``serving`` importable, and the trainer's ``toys``; no token of the caller's is used."""

import sys
from pathlib import Path

import pytest

for folder in (Path(__file__).parent, Path(__file__).parents[2] / "train"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@pytest.fixture(autouse=True)
def _no_token(monkeypatch):
    monkeypatch.delenv("FLOWRL_REWARD_TOKEN", raising=False)
