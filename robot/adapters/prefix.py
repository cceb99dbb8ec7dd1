"""The encoded prefix of a vision-language-action model: masks, state and key-value cache, with rows to choose from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.flow import Condition

__all__ = ["Prefix"]

_CHANGING = ("x_t", "timestep")  # arguments of denoise_step that differ from query to query


@dataclass(frozen=True)
class Prefix(Condition):
    """The arguments of ``denoise_step`` that stay the same through a chunk.

    ``prefix[rows]`` selects rows of the cache too, so that a composition can ask about some rows of a batch, or about one several times.

    Attributes:
        cache: Key-value cache of transformers, or mappings and sequences of tensors; None for a model without one.
        cache_name: Name of its argument.
    """

    cache: Any = None
    cache_name: str = "past_key_values"

    @classmethod
    def of(cls, query: Mapping[str, Any]) -> Prefix:
        """From the arguments of the host's first query."""
        tensors = {name: value for name, value in query.items() if isinstance(value, Tensor) and name not in _CHANGING}
        others = {name: value for name, value in query.items() if name not in tensors and name not in _CHANGING}
        name, cache = next(iter(others.items()), ("past_key_values", None))
        return cls(tensors=tensors, cache=cache, cache_name=name)

    @property
    def arguments(self) -> dict[str, Any]:
        """For ``denoise_step``."""
        return {**self.tensors, self.cache_name: self.cache}

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Prefix:
        """The given rows."""
        index = torch.arange(len(self))[rows] if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.long)
        return Prefix(tensors=super().__getitem__(index).tensors, cache=_rows_of(self.cache, index), cache_name=self.cache_name)


def _rows_of(cache: Any, index: Tensor) -> Any:
    if cache is None:
        return None
    if isinstance(cache, Tensor):
        return cache[index.to(cache.device)]
    if isinstance(cache, Mapping):
        return {key: _rows_of(value, index) for key, value in cache.items()}
    if hasattr(cache, "batch_select_indices"):  # transformers' caches select in place
        chosen = copy.deepcopy(cache)
        chosen.batch_select_indices(index)
        return chosen
    return type(cache)(_rows_of(value, index) for value in cache)
