"""Prompt embeddings, computed once per text."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.flow import Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flowrl.models.embedding_store import EmbeddingStore

__all__ = ["PromptCache"]


class PromptCache:
    """Embeddings keyed by text and facts, kept on the CPU; the least recently used are forgotten beyond a limit.

    With a store they are also on disk, where the next run finds them.
    """

    def __init__(
        self, encode: Callable[[list[str]], Mapping[str, Tensor]], *, limit: int = 1024, batch: int = 1, store: EmbeddingStore | None = None
    ) -> None:
        """Wrap an encoder.

        Args:
            encode: Texts to named tensors with one row per text; rows of different calls must have the same shape.
            limit: Texts to remember, at least 1. One prompt of SD3.5 takes 2.7 MB in bfloat16.
            batch: Texts to encode at once. With 1, an embedding does not depend on which other texts happened to be new
                with it, not even by rounding; an exact resume, which starts with an empty cache, relies on that.
            store: Where embeddings are on disk; None keeps them in memory alone.

        Raises:
            ValueError: If the limit or the batch is less than 1.
        """
        if limit < 1 or batch < 1:
            raise ValueError(f"limit and batch must be at least 1, got {limit} and {batch}; to remember nothing use limit=1")
        self._encode = encode
        self._limit = limit
        self._batch = batch
        self._store = store
        self._rows: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """The embeddings of the prompts, one row each, on the CPU; only texts that are neither remembered nor stored are encoded.

        Raises:
            ValueError: If there are no prompts.
        """
        if not prompts:
            raise ValueError("got no prompts to encode; give at least one text, '' is allowed")
        # Held here as well: a call with more texts than the limit must not forget its own.
        rows = {prompt: self._rows[prompt] for prompt in prompts if prompt in self._rows}
        rows |= self._read(dict.fromkeys(prompt for prompt in prompts if prompt not in rows))
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in rows]
        for start in range(0, len(missing), self._batch):
            rows |= self._encoded(missing[start : start + self._batch])
        self._remember(rows)
        names = rows[prompts[0]]
        return Condition({name: torch.stack([rows[prompt][name] for prompt in prompts]) for name in names})

    def __len__(self) -> int:
        """Texts remembered."""
        return len(self._rows)

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Those that would have to be encoded, each once."""
        stored = self._store or ()
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows and prompt not in stored]

    def fill(self, prompts: Sequence[str], *, limit: int = 0, on_batch: Callable[[int], object] = id) -> None:
        """Encode those that are still missing, batch by batch: to the store if there is one, else to memory.

        Args:
            prompts: In the order in which to take them.
            limit: Texts to remember from now on, if that is more than before.
            on_batch: Told the number of texts of each batch that is done.
        """
        self._limit = max(self._limit, limit)
        for start in range(0, len(prompts), self._batch):
            batch = prompts[start : start + self._batch]
            if missing := self.missing(batch):  # another process may have stored some meanwhile
                rows = self._encoded(missing)
                if self._store is None:
                    self._remember(rows)
            on_batch(len(batch))

    @torch.no_grad()
    def _encoded(self, prompts: list[str]) -> dict[str, dict[str, Tensor]]:
        tensors = {name: tensor.cpu() for name, tensor in self._encode(prompts).items()}
        # Cloned, because a view would keep the whole batch alive.
        rows = {prompt: {name: tensor[row].clone() for name, tensor in tensors.items()} for row, prompt in enumerate(prompts)}
        if self._store is not None:
            for prompt, row in rows.items():
                self._store.write(prompt, row)
        return rows

    def _read(self, prompts: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        if self._store is None:
            return {}
        found = {prompt: self._store.read(prompt) for prompt in prompts}
        return {prompt: row for prompt, row in found.items() if row is not None}

    def _remember(self, rows: Mapping[str, dict[str, Tensor]]) -> None:
        for prompt, tensors in rows.items():
            self._rows[prompt] = tensors
            self._rows.move_to_end(prompt)
        while len(self._rows) > self._limit:
            self._rows.popitem(last=False)
