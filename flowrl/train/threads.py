"""A word about threads: small networks lose by them on a CPU, most where other jobs use its cores too."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["hint_at_threads"]

_SMALL = 10_000_000  # parameters; a small network's operations are shorter than it takes to share them out

logger = logging.getLogger(__name__)


def hint_at_threads(network: nn.Module, device: torch.device) -> None:
    """Say what is faster if a small network is to be trained on a CPU with several threads; nothing is changed.

    Args:
        network: The one that is trained.
        device: Where.
    """
    threads, parameters = torch.get_num_threads(), sum(parameter.numel() for parameter in network.parameters())
    if device.type == "cpu" and threads > 1 and parameters < _SMALL:
        logger.info("small networks train fastest with one thread, here are %d: OMP_NUM_THREADS=1 flowrl train …", threads)
