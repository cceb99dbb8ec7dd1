"""The adapter that fits a pipeline, found by looking into its folder."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flowrl.errors import CheckpointError, close_match
from flowrl.models.source import ADAPTERS, pipeline_config

if TYPE_CHECKING:
    from flowrl.models.source import DiffusersSource

__all__ = ["AutoModel"]


class AutoModel:
    """Makes the adapter for whatever pipeline ``path`` holds, by the class that its ``model_index.json`` names.

    The result is the adapter itself, not an ``AutoModel``: YAML ``{target: flowrl.models.AutoModel, path: ...}`` is a shorthand, and the
    config that a run leaves behind names the adapter.
    """

    def __new__(cls, *, path: str, **fields: Any) -> DiffusersSource:  # type: ignore[misc]
        """Look, and make the adapter.

        Args:
            path: A folder that ``save_pretrained`` wrote, ``assets/models/...`` or a hub id.
            fields: Of the adapter.

        Raises:
            CheckpointError: If there is no pipeline, or none of the adapters reads it.
            ConfigError: If a field's value is out of range.
            TypeError: If the adapter has no such field.
        """
        name = str(pipeline_config(path).get("_class_name"))
        if name not in ADAPTERS:
            raise CheckpointError(f"no adapter reads a {name}, which {path} holds; there are adapters for {', '.join(sorted(ADAPTERS))}")
        adapter = ADAPTERS[name]
        known = [field.name for field in dataclasses.fields(adapter)]
        if unknown := [field for field in fields if field not in known]:
            raise TypeError(
                f"flowrl.models.{adapter.__name__}, which reads {path}, has no field {unknown[0]!r}{close_match(unknown[0], known)}"
            )
        return adapter(path=path, **fields)
