"""Several processes of one command, as accelerate launch or torchrun starts them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["Processes"]

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a process waits for the others, whose last block or files may take hours; PyTorch would give up after ten minutes."""


class Processes:
    """This process among those that were started together; alone where nothing was launched."""

    def __init__(self) -> None:
        """Join the others, if there are any."""
        import torch

        self.count, self.rank, self._state = 1, 0, None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
            self.count, self.rank, self.device = self._state.num_processes, self._state.process_index, self._state.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's items."""
        return list(items[self.rank :: self.count])

    def wait(self) -> None:
        """Until all processes have come here."""
        if self._state is not None:
            self._state.wait_for_everyone()
