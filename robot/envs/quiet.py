"""Import and build robosuite without its remarks."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what robosuite logs below an error and what its dependencies warn of, and keep ``MUJOCO_GL`` as it was (robosuite sets it)."""
    logger, gl = logging.getLogger("robosuite_logs"), os.environ.get("MUJOCO_GL")
    logger.addFilter(_errors_only)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(_errors_only)
        if gl is None:
            os.environ.pop("MUJOCO_GL", None)


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
