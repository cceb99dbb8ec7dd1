"""How processes share a network: what each of them holds.

Sources: DDP's buckets, arXiv:2006.15704; FSDP, arXiv:2304.11277; ZeRO, arXiv:1910.02054, Sec. 5, and DeepSpeed's defaults for the buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowrl.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from flowrl.train.plan.passes import Sizes

__all__ = ["DDP", "FSDP2", "Single", "Strategy", "ZeRO2", "read_strategy", "usual_strategies"]

FLOAT32 = 4  # bytes
DEEPSPEED_BUCKET = 500_000_000  # numbers; reduce_bucket_size and allgather_bucket_size
BLOCKS_AT_ONCE = 2  # FSDP 2 gathers the next block while one computes
ZERO_STAGE = 2
FSDP_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Every process for itself.

    Attributes:
        processes: All of them.
        per_machine: Of one machine.
    """

    name: ClassVar[str] = "one GPU"
    packs: ClassVar[bool] = True
    """Whether frozen weights may be packed (``model.quantise``)."""

    processes: int = 1
    per_machine: int = 1

    @property
    def title(self) -> str:
        """As it stands above a column."""
        return self.name if self.processes == 1 else f"{self.name} on {self.processes}"

    def check(self, source: Any) -> None:
        """Refuse a model that cannot be trained like this.

        Raises:
            ConfigError: If its frozen weights are packed, and the strategy does not know such weights.
        """
        if source.quantise is not None and not self.packs:
            raise ConfigError(f"{self.name} does not know packed weights; leave model.quantise out, or use one GPU or DDP")

    def share(self, size: float) -> int:
        """What a process holds of something that all need."""
        return int(size)

    def weights(self, sizes: Sizes) -> int:
        """Bytes of the network between passes."""
        return self.share(sizes.total)

    def gathered(self, sizes: Sizes) -> int:
        """Bytes of weights on top of that during a pass."""
        del sizes
        return 0

    def whole_gradients(self, sizes: Sizes) -> int:
        """Bytes of gradients that are not shared yet, during a backward pass."""
        del sizes
        return 0

    def moments(self, size: float) -> int:
        """Bytes of the optimiser's state, of ``size`` in all."""
        return int(size)

    def gradients(self, size: float) -> int:
        """Bytes of gradients, of ``size`` in all."""
        return int(size)

    def buffers(self, sizes: Sizes) -> int:
        """Bytes that communication and the strategy's own copies take throughout."""
        del sizes
        return 0


class Single(Strategy):
    """One process."""


@dataclass(frozen=True, kw_only=True)
class DDP(Strategy):
    """Every process holds everything; gradients are copied into buckets that stay."""

    name: ClassVar[str] = "DDP"

    def buffers(self, sizes: Sizes) -> int:
        """A copy of all gradients."""
        return sizes.trained * FLOAT32


@dataclass(frozen=True, kw_only=True)
class ZeRO2(Strategy):
    """Every process holds the whole network and a part of gradients and optimiser."""

    name: ClassVar[str] = "ZeRO-2"
    packs: ClassVar[bool] = False

    def moments(self, size: float) -> int:
        """A part."""
        return int(size / self.processes)

    def gradients(self, size: float) -> int:
        """A part."""
        return int(size / self.processes)

    def buffers(self, sizes: Sizes) -> int:
        """A float32 copy of this process's part of the trained weights, one bucket to reduce and one to gather."""
        return sizes.trained * FLOAT32 // self.processes + 2 * min(sizes.trained, DEEPSPEED_BUCKET) * FLOAT32


@dataclass(frozen=True, kw_only=True)
class FSDP2(Strategy):
    """Every process holds a part of everything; a block's weights are gathered while it computes."""

    name: ClassVar[str] = "FSDP 2"
    packs: ClassVar[bool] = False

    def share(self, size: float) -> int:
        """A part."""
        return int(size / self.processes)

    def gathered(self, sizes: Sizes) -> int:
        """Two blocks as they arrive and as they are used, and what lies outside of blocks, which stays gathered."""
        return (BLOCKS_AT_ONCE + 1) * sizes.largest_block + sizes.outside

    def whole_gradients(self, sizes: Sizes) -> int:
        """Of a block, and once more as it is sent."""
        return 2 * int(sizes.largest_block * sizes.trained * FLOAT32 / max(sizes.total, 1))

    def moments(self, size: float) -> int:
        """A part."""
        return int(size / self.processes)

    def gradients(self, size: float) -> int:
        """A part."""
        return int(size / self.processes)


def usual_strategies() -> list[Strategy]:
    """What is shown where no accelerate file says."""
    eight = {"processes": 8, "per_machine": 8}
    return [Single(), DDP(**eight), ZeRO2(**eight), FSDP2(**eight)]


def read_strategy(path: str | Path) -> Strategy:
    """The strategy of an accelerate config file.

    Raises:
        ConfigError: If it cannot be read, or names a strategy that the trainer does not have.
    """
    from flowrl.config import load_config

    settings = load_config(path)
    kind, processes = str(settings.get("distributed_type", "NO")), int(settings.get("num_processes") or 1)
    counts: dict[str, Any] = {"processes": processes, "per_machine": max(1, processes // int(settings.get("num_machines") or 1))}
    if kind == "NO" or (kind in ("MULTI_GPU", "MULTI_CPU") and processes == 1):
        return Single()
    if kind in ("MULTI_GPU", "MULTI_CPU"):
        return DDP(**counts)
    if kind == "FSDP" and int((settings.get("fsdp_config") or {}).get("fsdp_version", 1)) == FSDP_VERSION:
        return FSDP2(**counts)
    if kind == "DEEPSPEED" and int((settings.get("deepspeed_config") or {}).get("zero_stage", 0)) == ZERO_STAGE:
        return ZeRO2(**counts)
    raise ConfigError(f"{path}: {kind} of this kind is not supported; use DDP (MULTI_GPU), FSDP with fsdp_version: 2, or ZeRO stage 2")
