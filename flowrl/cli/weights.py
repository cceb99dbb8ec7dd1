"""Loading a model with the weights that a command means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from flowrl.models import ImageModel
    from flowrl.train import RLTrainer
    from flowrl.train.checkpoint import CheckpointFolder

__all__ = ["find_checkpoint", "load_checkpoint_weights", "load_model", "released"]


def find_checkpoint(run_dir: Path, given: str | None = None) -> Path:
    """Find a checkpoint and check that it is whole.

    Args:
        run_dir: The run folder.
        given: A checkpoint's folder, or the number of updates it was taken after; None for the run's newest.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    from flowrl.errors import CheckpointError
    from flowrl.train.checkpoint import CheckpointFolder, check_complete

    folder = CheckpointFolder(root=run_dir / "checkpoints")
    if given is not None and given.isdecimal() and not folder.path(int(given)).is_dir():
        raise CheckpointError(_not_kept(folder, int(given)))
    found = folder.latest() if given is None else folder.path(int(given)) if given.isdecimal() else Path(given)
    if found is None:
        raise CheckpointError(f"{folder.root} holds no checkpoint yet; let the run finish its first checkpoint_every updates")
    check_complete(found)
    return found


def _not_kept(folder: CheckpointFolder, update: int) -> str:
    kept = [path.name for path in folder.all()]
    if not kept:
        return f"{folder.root} holds no checkpoint; give a run's folder as the source, or --checkpoint RUN/checkpoints/update_{update:06d}"
    names = " and ".join([", ".join(kept[:-1]), kept[-1]] if len(kept) > 1 else kept)
    return (
        f"{folder.root} holds no {folder.path(update).name}, only {names}; give one of these "
        "(a run keeps as many of the newest as its keep_checkpoints says)"
    )


def load_model(trainer: RLTrainer, device: torch.device | None = None) -> ImageModel:
    """Load a run's model with the weights from before training.

    Args:
        trainer: Of the run.
        device: Where to; a GPU if there is one, unless told otherwise.
    """
    import torch

    from flowrl.models.quiet import quiet_libraries

    with quiet_libraries():
        return trainer.model.load(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def released(checkpoint: Path) -> Path:
    """The folder of the weights that a checkpoint releases: the average where there is one."""
    average = checkpoint / "weights_ema"
    return average if average.is_dir() else checkpoint / "weights"


def load_checkpoint_weights(model: ImageModel, checkpoint: Path) -> None:
    """Load the weights that a checkpoint releases: the average where there is one.

    Raises:
        CheckpointError: If they do not fit the model.
    """
    model.load_weights(released(checkpoint))
