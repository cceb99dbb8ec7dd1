"""What a velocity field is conditioned on: named tensors that share a leading batch axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Condition"]


@dataclass(frozen=True)
class Condition:
    """Named tensors with one leading batch axis: text embeddings, observations, ids.

    ``condition[rows]`` selects rows of every tensor, as one would of a single tensor.

    Attributes:
        tensors: Each ``(batch, ...)``; empty for an unconditional field.
        rows: Batch size; only needed where ``tensors`` is empty.

    Raises:
        ValueError: If the tensors disagree about the batch size.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    rows: int | None = None

    def __post_init__(self) -> None:
        sizes = {name: tensor.shape[0] for name, tensor in self.tensors.items()}
        if self.rows is not None:
            sizes["rows"] = self.rows
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the tensors of a condition must share their first axis, got {sizes}")

    def __len__(self) -> int:
        """Batch size."""
        return next((tensor.shape[0] for tensor in self.tensors.values()), self.rows or 0)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Condition:
        """The given rows of every tensor."""
        index = rows if isinstance(rows, slice | Tensor) else torch.as_tensor(rows, dtype=torch.long)
        if not self.tensors:
            return Condition(rows=len(torch.arange(len(self))[index]))
        return Condition(
            {name: tensor[index if isinstance(index, slice) else index.to(tensor.device)] for name, tensor in self.tensors.items()}
        )

    def repeat(self, times: int) -> Condition:
        """Each row ``times`` times in a row: a, a, b, b."""
        return self[torch.arange(len(self)).repeat_interleave(times)]

    def to(self, target: torch.device | torch.dtype | str) -> Condition:
        """Move or cast every tensor; integer tensors keep their dtype."""
        if isinstance(target, torch.dtype):
            return Condition({n: x.to(target) if x.is_floating_point() else x for n, x in self.tensors.items()}, self.rows)
        return Condition({name: tensor.to(target) for name, tensor in self.tensors.items()}, self.rows)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Stack conditions with the same names along the batch axis.

        Raises:
            ValueError: If there are none, or their names differ.
        """
        if not conditions or len({frozenset(c.tensors) for c in conditions}) > 1:
            raise ValueError(f"conditions to concatenate must have the same names, got {[sorted(c.tensors) for c in conditions]}")
        names = conditions[0].tensors
        if not names:
            return Condition(rows=sum(map(len, conditions)))
        return Condition({name: torch.cat([c.tensors[name] for c in conditions]) for name in names})
