"""From which checkpoint a run goes on, and whether it is a checkpoint of that run."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from flowrl.config.targets import find_target
from flowrl.errors import CheckpointError, ConfigError
from flowrl.train.checkpoint import CheckpointFolder
from flowrl.train.describe import differences
from flowrl.train.metrics import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CONFIG_FILE", "refuse_other_config", "say_if_finished", "starting_point"]

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
_SHOWN = 5  # differences of configuration in a message


def starting_point(folder: Path, checkpoints: CheckpointFolder, *, resume: bool, checkpoint_every: int) -> Path | None:
    """The checkpoint to go on from, or None to start afresh; of several processes, all take what the main one found.

    Args:
        folder: The run folder.
        checkpoints: Its checkpoints.
        resume: Whether to go on.
        checkpoint_every: Updates that a run may have logged before its first checkpoint.

    Raises:
        ConfigError: If the folder already holds a run that is not to be resumed.
        CheckpointError: If the checkpoints are damaged, or gone although the metrics show that there were some.
    """
    metrics = folder / METRICS_FILE
    if not resume and (metrics.exists() or checkpoints.all()):
        raise ConfigError(f"{folder} already holds a run; go on with --resume, or choose another run_dir")
    checkpoint = checkpoints.latest() if resume else None
    if checkpoint is None and metrics.exists():
        done = max((line["update"] + 1 for line in read_metrics(metrics) if line["kind"] == "train"), default=0)
        if done > checkpoint_every:
            raise CheckpointError(
                f"{metrics} shows {done} updates, but there is no checkpoint in {checkpoints.root}; put the checkpoints back, "
                "or choose another run_dir to start again"
            )
    return checkpoint


def refuse_other_config(checkpoint: Path, config: Mapping[str, Any], free: Collection[str]) -> None:
    """Refuse to go on with another configuration than the checkpoint's.

    Args:
        checkpoint: Its folder.
        config: Of the run that wants to go on.
        free: Fields of the run that may differ. So may those that a component names in ``free_on_resume``, such as the address of a server.

    Raises:
        CheckpointError: If anything else differs.
    """
    saved = yaml.safe_load((checkpoint / CONFIG_FILE).read_text(encoding="utf-8"))
    changed = [line for line in differences(_fixed(saved), _fixed(config)) if line.split(":")[0].split(".")[0] not in free]
    if changed:
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        own = _going_on(checkpoint.parent.parent, "updates" if "updates" in free else "steps", "…")
        raise CheckpointError(
            f"{checkpoint} is a checkpoint of another configuration ({'; '.join(changed[:_SHOWN])}{more}); "
            f"resume with the run's own, which may take more updates: {own}; or choose another run_dir"
        )


def say_if_finished(folder: Path, updates: int) -> None:
    """Tell somebody who resumes a run that there is nothing left to do, and how to have more.

    Args:
        folder: The run folder.
        updates: All that the run is to do.
    """
    if (folder / CONFIG_FILE).is_file() and CheckpointFolder(root=folder / "checkpoints").path(updates).is_dir():
        more = _going_on(folder, "updates", 2 * updates)
        logger.info("%s is finished: all of its %d updates are done. To train on: %s", folder, updates, more)


def _going_on(folder: Path, count: str, most: object) -> str:
    return f"{shlex.join(['flowrl', 'train', str(folder / CONFIG_FILE)])} {count}={most} --resume"


def _fixed(config: Any) -> Any:
    """A configuration without the fields that its components let change between a run and its resumption."""
    if isinstance(config, Mapping):
        free = _free_of(config["target"]) if "target" in config else ()
        return {name: _fixed(value) for name, value in config.items() if name not in free}
    return [_fixed(value) for value in config] if isinstance(config, list) else config


def _free_of(target: object) -> Collection[str]:
    try:
        return getattr(find_target(target, "config.target"), "free_on_resume", ())
    except ConfigError:  # a class that no config can name
        return ()
