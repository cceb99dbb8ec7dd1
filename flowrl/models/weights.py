"""Trained weights on disk: safetensors only, in the layouts that diffusers itself loads, and checked before they are used."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from flowrl.errors import CheckpointError
from flowrl.models.lora import ADAPTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from flowrl.models.lora import LoRA

__all__ = ["LORA_FILE", "WEIGHTS_FILE", "load_full", "load_lora", "read_safetensors", "save_full", "save_lora"]

LORA_FILE = "pytorch_lora_weights.safetensors"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_INDEX_FILE = WEIGHTS_FILE + ".index.json"
_METADATA = "lora_adapter_metadata"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata.

    Raises:
        CheckpointError: If the file is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; give the folder that the weights were saved to")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not safetensors ({error}); use another checkpoint") from error


def save_lora(
    pipeline: Any, module: nn.Module, folder: Path, *, lora: LoRA, network: str = "transformer", state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapter as its pipeline does, with its alpha: ``load_lora_weights(folder, weight_name=LORA_FILE)`` restores it.

    Args:
        pipeline: The pipeline, or its class.
        module: Its network with the adapter attached.
        folder: Made if it is not there.
        lora: The adapter's settings.
        network: The pipeline's name for its network.
        state: The module's complete state dict, if its own is sharded.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(module, state_dict=state, adapter_name=ADAPTER)
    with _writing(folder):
        saved = {f"{network}_lora_layers": {name: tensor.contiguous() for name, tensor in layers.items()}}
        pipeline.save_lora_weights(folder, **saved, **{f"{network}_lora_adapter_metadata": lora.metadata()}, weight_name=LORA_FILE)


def load_lora(module: nn.Module, folder: Path, *, lora: LoRA, network: str = "transformer") -> None:
    """Copy a saved adapter into the attached one.

    Args:
        module: The network with the adapter attached.
        folder: What :func:`save_lora` wrote to.
        lora: The adapter's settings.
        network: The pipeline's name for its network.

    Raises:
        CheckpointError: If the file is missing or truncated, or holds an adapter of another rank, alpha or set of layers.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    path = folder / LORA_FILE
    if not path.is_file() and (folder / network).is_dir():
        raise CheckpointError(f"{folder} holds full weights, but the model has a LoRA; leave `lora` out, or use a LoRA checkpoint")
    tensors, metadata = read_safetensors(path)
    state = {name.removeprefix(f"{network}."): tensor for name, tensor in tensors.items()}
    saved = json.loads(metadata.get(_METADATA, "{}"))
    alpha, rank = saved.get(f"{network}.lora_alpha", lora.alpha), saved.get(f"{network}.r", lora.rank)
    if (rank, alpha) != (lora.rank, lora.alpha):
        raise CheckpointError(f"{path} has LoRA rank {rank} and alpha {alpha}, the config {lora.rank} and {lora.alpha}; make them the same")
    _check_same(state, get_peft_model_state_dict(module, adapter_name=ADAPTER), path)
    set_peft_model_state_dict(module, state, adapter_name=ADAPTER)


def save_full(module: Any, folder: Path, *, state: Mapping[str, Tensor] | None = None) -> None:
    """Write all weights and the configuration: ``type(module).from_pretrained(folder)`` restores the network.

    Args:
        module: A diffusers network.
        folder: Made if it is not there.
        state: The module's complete state dict, if its own is sharded.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    from huggingface_hub import save_torch_state_dict

    with _writing(folder):
        module.save_config(folder)
        _name_plain_class(module, folder / "config.json")
        pattern = WEIGHTS_FILE.replace(".", "{suffix}.")
        save_torch_state_dict(dict(state or module.state_dict()), folder, filename_pattern=pattern, max_shard_size="10GB")


def _name_plain_class(module: nn.Module, config: Path) -> None:
    """FSDP 2 puts a class of its own before the network's, which diffusers would look for."""
    plain = next(kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed"))
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(settings | {"_class_name": plain.__name__}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_full(module: nn.Module, folder: Path) -> None:
    """Copy saved weights into the network.

    Raises:
        CheckpointError: If a file is missing or truncated, or belongs to another architecture.
    """
    if not folder.is_dir() and (folder.parent / LORA_FILE).is_file():
        raise CheckpointError(f"{folder.parent} holds a LoRA, but the model has none; add `lora`, or use a checkpoint of full weights")
    state: dict[str, Tensor] = {}
    for name in _shards(folder):
        state |= read_safetensors(folder / name)[0]
    _check_same(state, module.state_dict(), folder)
    module.load_state_dict(state)


def _shards(folder: Path) -> list[str]:
    index = folder / _INDEX_FILE
    if not index.is_file():
        return [WEIGHTS_FILE]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{index} is truncated or not an index of shards ({error}); use another checkpoint") from error


def _check_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: Path) -> None:
    """Refuse tensors of other names or shapes, and show the first few that differ."""
    differences = [f"{name} is missing" for name in expected if name not in found]
    differences += [f"{name} is not in the model" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        there, here = tuple(found[name].shape), tuple(expected[name].shape)
        if there != here:
            differences.append(f"{name} is {there}, the model's is {here}")
    if differences:
        shown = "; ".join(sorted(differences)[:3])
        raise CheckpointError(f"{where} does not fit the model in {len(differences)} tensors: {shown}; use the config it was saved with")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot write weights to {folder}: {error}; free some space, or choose another folder") from error
