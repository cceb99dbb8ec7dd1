"""What a configuration will cost, found without loading a model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flowrl.flow import Condition
from flowrl.models import DiffusersSource, LoRA
from flowrl.models.source import DTYPES, resolve_path
from flowrl.shapes import seeded_generator

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from flowrl.flow import Sampler
    from flowrl.shapes import Time
    from flowrl.train.trainer import RLTrainer

__all__ = ["MemoryPart", "RolloutCost", "memory_parts", "rollout_cost"]

FLOAT32 = 4  # bytes
MOMENTS = 2  # of AdamW, per weight


@dataclass(frozen=True, kw_only=True)
class RolloutCost:
    """What one update draws, over all processes.

    Attributes:
        network_evaluations: States that the network evaluates in the rollout, guidance counted.
        pictures: Decoded and scored.
        trained_states: States evaluated again in each pass of the update, with a backward pass.
        stored_states: Latents kept from the rollout to the update.
    """

    network_evaluations: int
    pictures: int
    trained_states: int
    stored_states: int


@dataclass(frozen=True, kw_only=True)
class MemoryPart:
    """One thing that occupies memory on every process.

    Attributes:
        name: What it is.
        size: Bytes.
    """

    name: str
    size: int


def rollout_cost(trainer: RLTrainer) -> RolloutCost:
    """Count what one update costs, by drawing one group of numbers from a field that is zero everywhere."""
    sampler: Sampler = trainer.sampler.for_update(0, trainer.seed)
    noise = torch.zeros(sampler.noise_rows(), 1)
    drawn = sampler.sample(_still, noise, Condition(rows=1), seeded_generator(0))
    prompts = trainer.prompts_per_update
    guidance = 1 if getattr(trainer.model, "guidance_scale", 1.0) == 1 else 2
    pictures = math.prod(drawn.samples.shape[:3])
    return RolloutCost(
        network_evaluations=prompts * drawn.network_evaluations * guidance,
        pictures=prompts * pictures,
        trained_states=prompts * len(drawn.parents),
        stored_states=prompts * (pictures + len(drawn.parents) + math.prod(drawn.children.shape[:2])),
    )


def memory_parts(trainer: RLTrainer, processes: int = 1) -> list[MemoryPart]:
    """Add up what a process holds throughout a run; the activations of a pass come on top and depend on ``micro_batch``.

    Weights are counted from the headers of the safetensors files, so nothing is loaded.

    Args:
        trainer: The configuration.
        processes: Among which the rollout is shared; weights are held by each (no sharding).

    Raises:
        CheckpointError: If the model's folder is missing.
        ValueError: If the model is no local diffusers pipeline.
    """
    source = trainer.model
    if not isinstance(source, DiffusersSource):
        raise ValueError(f"memory can be estimated for diffusers pipelines, not for a {type(source).__name__}")
    folder = _local_folder(source)
    shapes = {part.name: _shapes(part) for part in sorted(folder.iterdir()) if part.is_dir()}
    counts = {name: sum(map(math.prod, tensors.values())) for name, tensors in shapes.items() if tensors}
    network = counts.pop("transformer", 0)
    trained = network if source.lora is None else _lora_size(shapes["transformer"], source.lora)
    compute, storage = (torch.empty(0, dtype=dtype).element_size() for dtype in (DTYPES[source.dtype], source.storage_dtype))
    parts = [MemoryPart(name="network", size=network * storage)]
    parts += [MemoryPart(name=name, size=count * (FLOAT32 if name == "vae" else compute)) for name, count in counts.items()]
    if source.lora is not None:
        parts.append(MemoryPart(name="LoRA", size=trained * FLOAT32))
    parts.append(MemoryPart(name="gradients", size=trained * FLOAT32))
    parts.append(MemoryPart(name="optimiser moments", size=trained * MOMENTS * FLOAT32))
    if trainer.ema_decay is not None:
        parts.append(MemoryPart(name="weight average", size=trained * FLOAT32))
    stored = rollout_cost(trainer).stored_states * math.prod(_state_shape(source, folder)) * FLOAT32
    return [*parts, MemoryPart(name="latents of a rollout", size=stored // processes)]


def _still(x_t: Tensor, t: Time, condition: Condition) -> Tensor:
    del t, condition
    return torch.zeros_like(x_t)


def _local_folder(source: DiffusersSource) -> Path:
    from pathlib import Path

    folder = Path(resolve_path(source.path))
    if not folder.is_dir():
        raise ValueError(f"{source.path} is not on this machine, so its size is unknown here")
    return folder


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors below a folder, from the headers of its safetensors files."""
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return found


def _lora_size(shapes: dict[str, tuple[int, ...]], lora: LoRA) -> int:
    """Weights of the adapter: rank · (inputs + outputs) per adapted layer."""
    layers = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    adapted = [shape for name, shape in layers.items() if f".{name}".endswith(tuple(f".{target}" for target in lora.targets))]
    return lora.rank * sum(shape[0] + shape[1] for shape in adapted)


def _state_shape(source: DiffusersSource, folder: Path) -> tuple[int, ...]:
    """Channels, height and width of a latent."""
    network, decoder = (_json(folder / part / "config.json") for part in ("transformer", "vae"))
    factor = 2 ** (len(decoder.get("block_out_channels", [0])) - 1)
    sides = (side // factor if side else network["sample_size"] for side in (source.height, source.width))
    return (network["in_channels"], *sides)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}); the model's folder is incomplete") from error
