"""Prompts to embeddings: the cache, and the encoders that fill it and then make room."""

from __future__ import annotations

import gc
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from flowrl.errors import ConfigError
from flowrl.models.cache import PromptCache
from flowrl.models.embedding_store import EmbeddingStore, folder_fingerprint
from flowrl.models.placement import Parked, all_at_work
from flowrl.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from flowrl.flow import Condition
    from flowrl.models.source import DiffusersSource

__all__ = ["PromptEncoder"]


class PromptEncoder:
    """Embeddings of prompts, and where the text encoders are meanwhile: see ``text_encoders`` of :class:`ResourceOptions`."""

    def __init__(
        self,
        source: DiffusersSource,
        pipeline: Any,
        device: torch.device,
        encode: Callable[[list[str]], Mapping[str, Tensor]],
        *,
        helpers: Sequence[Parked] = (),
    ) -> None:
        """Take over a pipeline's text encoders.

        Args:
            source: The configuration.
            pipeline: Without text encoders where they are not kept: they are read at the first use.
            device: Where they work.
            encode: The adapter's ``encode_texts``.
            helpers: Waiting parts that it needs beside the text encoders.
        """
        self._source = source
        self._pipeline = pipeline
        self._device = device
        self._encode = encode
        self._helpers = helpers
        self._encoders: dict[str, Parked] | None = {} if source.text_encoders == "keep" else None
        self._dropped = False
        self._store = None
        if source.embedding_cache is not None:
            self._store = EmbeddingStore(Path(source.embedding_cache).expanduser(), encoder_identity(source))
        self._cache = PromptCache(self._encode_now, limit=source.cached_prompts, batch=source.encode_batch, store=self._store)

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """Embeddings, one row per prompt, on the CPU.

        Raises:
            ConfigError: If a text is not known and its encoders have been dropped.
        """
        if self._source.text_encoders == "keep" or self._dropped or len(self._cache.missing(prompts)) < 2:  # noqa: PLR2004
            return self._cache(prompts)
        with all_at_work(self._parts()):  # once for all of them, not once a batch
            return self._cache(prompts)

    def prepare(self, prompts: Sequence[str]) -> None:
        """Encode all texts of a run and let the encoders go, as the configuration says; may be called again with more texts."""
        plan, in_memory = self._source.text_encoders, self._store is None
        if plan == "keep":
            return
        missing = self._cache.missing(prompts)
        if plan == "offload" and in_memory and len(missing) > self._source.cached_prompts:
            return  # most would be forgotten again
        self._dropped = False
        if missing:
            self._fill(missing, limit=len(self._cache) + len(missing) if in_memory else 0)
        if self._source.text_encoders == "drop":
            self._drop()

    def _fill(self, missing: Sequence[str], *, limit: int) -> None:
        """Each process begins at another place, so that with a store they share the work."""
        rank, processes = _rank()
        first = len(missing) * rank // processes
        order = [*missing[first:], *missing[:first]]
        with tqdm(total=len(order), unit="prompt", desc="encoding", disable=rank > 0, leave=False) as bar, all_at_work(self._parts()):
            self._cache.fill(order, limit=limit, on_batch=bar.update)

    def _encode_now(self, prompts: list[str]) -> Mapping[str, Tensor]:
        if self._dropped:
            raise ConfigError(
                f"no embedding of {str(prompts[0])!r}: the text encoders were dropped after this run's prompts were encoded; name it to "
                "model.prepare([...]) first, or set text_encoders to 'offload'"
            )
        with all_at_work(self._parts()):
            return self._encode(prompts)

    def _parts(self) -> list[Parked]:
        """The encoders, read if they are not there."""
        if self._encoders is None:
            self._encoders = {}
            with quiet_libraries():
                read = self._source.read_text_encoders()
            for name, module in read.items():
                setattr(self._pipeline, name, module)
                self._encoders[name] = Parked(module, self._device)
        return [*self._encoders.values(), *self._helpers]

    def _drop(self) -> None:
        for name in self._encoders or ():
            setattr(self._pipeline, name, None)
        self._encoders, self._dropped = None, True
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def encoder_identity(source: DiffusersSource) -> dict[str, Any]:
    """Everything that an embedding depends on beside the text: the adapter, its own settings, dtype, libraries, and the encoders' files."""
    import diffusers
    import transformers

    from flowrl.models.source import DiffusersSource, pipeline_config, resolve_path

    shared = {field.name for field in fields(DiffusersSource)}
    settings = {field.name: getattr(source, field.name) for field in fields(source) if field.name not in shared}
    if source.encodes_with:
        settings |= {name: getattr(source, name) for name in ("height", "width", "decoder_dtype", "decode_tile")}
    there = {name for name, where in pipeline_config(source.path).items() if not isinstance(where, list | tuple) or where[0] is not None}
    parts = sorted(there - {source.network, "scheduler", *source.unused_parts, *({"vae"} - {*source.encodes_with})})
    return {
        "adapter": type(source).__name__,
        "settings": {name: repr(value) for name, value in settings.items()},
        "dtype": source.dtype,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "files": _files(resolve_path(source.path), tuple(parts)),
    }


def _files(resolved: str, parts: tuple[str, ...]) -> Any:
    """A local pipeline's files, or the hub's id with its commit."""
    if Path(resolved).is_dir():
        return folder_fingerprint(Path(resolved), parts)
    from huggingface_hub import snapshot_download

    return {"hub": resolved, "commit": Path(snapshot_download(resolved, allow_patterns=["model_index.json"])).name}


def _rank() -> tuple[int, int]:
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
