"""Where a learned reward's weights come from, and how they are read: a file, a folder or a hub id, never by unpickling code.

A checkpoint is named by a path, or as ``owner/name``, ``owner/name@revision`` or ``owner/name:file`` on the Hugging Face hub. What is
published where stands once, in `rewards.published`, and every message about missing weights ends with it.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
import zipfile
from collections.abc import Mapping
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flowrl.errors import CheckpointError, RewardError
from flowrl.models.quiet import quiet_libraries
from flowrl.models.weights import read_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from rewards.published import Published

__all__ = [
    "check_sha256",
    "find_file",
    "find_files",
    "find_first",
    "is_folder_like",
    "loaded_once",
    "read_tensors",
    "transformers_module",
]

_HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w.+/-]+))?")
_WEIGHT_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".txt"}
_Built = TypeVar("_Built")


def is_folder_like(checkpoint: str) -> bool:
    """Whether a checkpoint names a folder or a hub repository rather than one file."""
    path = Path(checkpoint).expanduser()
    if path.exists():
        return path.is_dir()
    hub = _hub_id(checkpoint)
    return hub is not None and not hub["file"]


def find_file(checkpoint: str, published: Published) -> Path:
    """The file of a checkpoint that names one, fetched from the hub if it is not local.

    Args:
        checkpoint: A path, or ``owner/name:file``.
        published: Whose advice a message ends with.

    Raises:
        RewardError: If it is not there and cannot be fetched.
    """
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return path
    hub = _hub_id(checkpoint)
    if hub is None or not hub["file"]:
        raise RewardError(f"{checkpoint} is neither a file nor owner/name:file on the hub; {published.advice}")
    if (found := _fetch(hub, hub["file"], published)) is None:
        raise RewardError(f"{hub['repository']} has no file {hub['file']}; {published.advice}")
    return found


def find_files(checkpoint: str, names: Sequence[str], published: Published) -> dict[str, Path]:
    """Those of the named files that a folder or a hub repository has, fetched from the hub if they are not local.

    Args:
        checkpoint: A folder, or ``owner/name`` on the hub.
        names: File names; ones that are absent are left out.
        published: Whose advice a message ends with.

    Raises:
        RewardError: If the checkpoint is not there or cannot be reached, or has none of the files.
    """
    found = {name: path for name in names if (path := _find(checkpoint, name, published)) is not None}
    if not found:
        raise RewardError(f"{checkpoint} has none of the files {', '.join(names)}; {published.advice}")
    return found


def find_first(checkpoint: str, names: Sequence[str], published: Published) -> Path:
    """The first of the named files that a folder or a hub repository has; the others are not fetched. See `find_files`.

    Raises:
        RewardError: If the checkpoint is not there or cannot be reached, or has none of the files.
    """
    for name in names:
        if (path := _find(checkpoint, name, published)) is not None:
            return path
    raise RewardError(f"{checkpoint} has none of the files {', '.join(names)}; {published.advice}")


def _find(checkpoint: str, name: str, published: Published) -> Path | None:
    """A file of a folder or a hub repository; None if it has no such file."""
    folder, hub = Path(checkpoint).expanduser(), _hub_id(checkpoint)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if hub is None or hub["file"]:
        raise RewardError(f"{checkpoint} is neither a folder nor owner/name on the hub; {published.advice}")
    return _fetch(hub, name, published)


def _hub_id(checkpoint: str) -> dict[str, str] | None:
    match = _HUB.fullmatch(checkpoint)
    if match is None or (not match["file"] and Path(checkpoint).suffix in _WEIGHT_SUFFIXES):
        return None
    return match.groupdict()


def _fetch(hub: Mapping[str, str], name: str, published: Published) -> Path | None:
    """A file of the hub; None if the repository has no such file, which off line means that it was not fetched before."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if (problem := _unreachable(hub, name)) is not None:
        raise _not_fetched(hub, name, problem, published) from problem
    try:
        return Path(hf_hub_download(hub["repository"], name, revision=hub["revision"]))
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors, a malformed name is a ValueError
        if isinstance(error, EntryNotFoundError) and (constants.HF_HUB_OFFLINE or not isinstance(error, LocalEntryNotFoundError)):
            return None
        raise _not_fetched(hub, name, error, published) from error


def _unreachable(hub: Mapping[str, str], name: str) -> Exception | None:
    """Why there is no connection to the hub for a file that is not here, found at once: the download itself would try for 23 seconds.

    A connection that is only slow is left to the download, as is what the hub answers.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    try:
        here = try_to_load_from_cache(hub["repository"], name, revision=hub["revision"])
        if not constants.HF_HUB_OFFLINE and not isinstance(here, str):
            get_hf_file_metadata(hf_hub_url(hub["repository"], name, revision=hub["revision"]))
    except (HfHubHTTPError, ValueError):
        return None
    except Exception as error:  # of whichever library the hub's client speaks through
        return None if "Timeout" in type(error).__name__ else error
    return None


def _not_fetched(hub: Mapping[str, str], name: str, error: Exception, published: Published) -> RewardError:
    reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
    return RewardError(
        f"{name} of {hub['repository']} cannot be fetched ({reason}; with HF_HUB_OFFLINE=1 what was fetched before is used); "
        f"{published.advice}"
    )


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified_ns: int) -> str:  # noqa: ARG001 - a file that changed is read again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str | None) -> None:
    """Refuse a file whose SHA-256 is another; None accepts any.

    Raises:
        RewardError: If it differs.
    """
    if expected is None:
        return
    stat = path.stat()
    found = _sha256(path, stat.st_size, stat.st_mtime_ns)
    if found != expected.lower():
        raise RewardError(f"{path} has the SHA-256 {found}, expected {expected}: it is damaged or another file; fetch it again")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch checkpoint, on the CPU; objects other than tensors are not unpickled.

    Of a training checkpoint, the mapping under ``state_dict`` or ``model`` is taken; a prefix ``module.`` that all names have is removed.

    Raises:
        RewardError: If the file is damaged, holds code or holds no tensors.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)[0]
        _refuse_script(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (CheckpointError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RewardError(f"{path} cannot be read as weights ({reason}); only tensors are loaded, never code: fetch it again") from error
    state: Any = loaded
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise RewardError(f"{path} holds no tensors by name; give the file of weights, not of an optimiser or a whole module")
    shared = "module."
    return {name.removeprefix(shared): value for name, value in tensors.items()} if all(n.startswith(shared) for n in tensors) else tensors


def _refuse_script(path: Path) -> None:
    """torch.load warns about a TorchScript archive before it refuses it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise RewardError(
                    f"{path} is a TorchScript archive, which is code; use the weights in the transformers or open_clip format"
                )


def transformers_module(kind: Any, config: Any, state: Mapping[str, Tensor], **arguments: Any) -> Any:
    """A transformers network with given weights, in evaluation mode, float32, on the CPU.

    Args:
        kind: Its class.
        config: Its configuration.
        state: Its names to tensors; names that it does not have are left out.
        **arguments: Of the class.

    Raises:
        RewardError: If tensors are missing or have other shapes; a network with random weights would score, but nothing real.
    """
    import torch

    try:
        with quiet_libraries():
            module, found = kind.from_pretrained(
                None, config=config, state_dict=dict(state), output_loading_info=True, dtype=torch.float32, **arguments
            )
    except (RuntimeError, ValueError) as error:
        raise RewardError(f"the weights do not fit {kind.__name__}: {str(error).splitlines()[0]}") from error
    if wrong := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"], *found["error_msgs"]])):
        raise RewardError(
            f"the weights do not fit {kind.__name__}: missing or of another shape are {', '.join(wrong[:5])} ({len(wrong)} in all)"
        )
    return module.eval()


def loaded_once(load: Callable[..., _Built]) -> Callable[..., _Built]:
    """What a function builds is kept for as long as the process lives, one for each set of (hashable) arguments; threads wait for it."""
    lock, kept = threading.Lock(), lru_cache(maxsize=None)(load)

    @wraps(load)
    def load_once(*args: Any, **kwargs: Any) -> _Built:
        with lock:
            return kept(*args, **kwargs)

    return load_once
