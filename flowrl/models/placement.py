"""Frozen parts of a pipeline that are on the accelerator only while they work."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Parked", "all_at_work"]


@dataclass(frozen=True)
class _Place:
    """Where in a module a tensor belongs."""

    owner: nn.Module
    name: str
    tensor: Tensor


class Parked:
    """A frozen module that waits on the CPU; what it holds there stays, so that going back costs nothing.

    Its tensors must not change while it works: such changes would be lost.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """Take a module over.

        Args:
            module: On the CPU, without gradients.
            device: Where it works.
        """
        self.module = module
        self._device = device
        self._users = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The module is on the device inside this context, and inside others within it."""
        if self._users:
            with self._used():
                yield
            return
        places = _places(self.module)
        try:
            _put(places, self._device)
            with self._used():
                yield
        finally:
            _put(places, None)

    @contextmanager
    def _used(self) -> Iterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1


@contextmanager
def all_at_work(parts: Sequence[Parked]) -> Iterator[None]:
    """Several of them at once."""
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.at_work())
        yield


def _places(module: nn.Module) -> list[_Place]:
    found = []
    for owner in module.modules():
        own = {**dict(owner.named_parameters(recurse=False)), **dict(owner.named_buffers(recurse=False))}
        found += [_Place(owner, name, tensor) for name, tensor in own.items()]
    return found


def _put(places: Sequence[_Place], device: torch.device | None) -> None:
    """Copies on a device in the places of the tensors, or, without one, the tensors themselves; a shared tensor is copied once."""
    copies: dict[int, Tensor] = {}
    for place in places:
        tensor = place.tensor
        if device is not None and tensor.device != device:
            if id(tensor) not in copies:
                copy = tensor.detach().to(device)
                copies[id(tensor)] = nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
            tensor = copies[id(tensor)]
        setattr(place.owner, place.name, tensor)
