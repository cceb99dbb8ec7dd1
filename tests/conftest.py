"""One torch thread, no hub, no clock in hypothesis, one seed: the suite gives the same result on every run."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import logging
from collections.abc import Iterator

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("flowrl", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("flowrl")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """The command line sets up flowrl's logger for its process; the next test finds it as it was."""
    logger = logging.getLogger("flowrl")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
