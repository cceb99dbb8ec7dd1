"""Passes through a network, measured by dry runs: of the update, of the rollout, of the decoder, of a reward's network."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch

from flowrl.models import LoRA
from flowrl.models.options import Quantise
from flowrl.train.plan.architecture import Part
from flowrl.train.plan.dry_run import DeviceRules, Meter
from flowrl.train.plan.inputs import Geometry, network_inputs
from flowrl.train.plan.quantised import pack_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

__all__ = ["Cost", "NetworkSetup", "Sizes", "decoding", "evaluating", "picture_scoring", "sizes", "updating"]

MANY_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a pass takes.

    Attributes:
        peak: Bytes on top of the weights; of a pass of the update also on top of the gradients.
        operations: Floating-point operations, a multiplication and an addition being two.
    """

    peak: int
    operations: float


@dataclass(frozen=True, kw_only=True)
class NetworkSetup:
    """How a network is trained.

    Attributes:
        part: The network.
        geometry: Of one picture.
        lora: The adapter that is trained; None trains all weights.
        storage: Dtype of the weights that are frozen, or of all.
        compute: Dtype of autocast; float32 for none.
        quantise: How frozen weights are packed; None leaves them in ``storage``.
        checkpointing: Whether activations are computed again in the backward pass.
        cuda: Whether autocast follows CUDA's rules; the CPU's leave norms as they are.
    """

    part: Part
    geometry: Geometry
    lora: LoRA | None
    storage: torch.dtype
    compute: torch.dtype
    checkpointing: bool
    quantise: Quantise | None = None
    cuda: bool = True

    def build(self) -> Any:
        """The network on the meta device, with its adapter; packed without one, it is all frozen."""
        network = _frozen(self.part, self.storage)
        if self.quantise is not None:
            pack_sizes(network, self.quantise, self.compute)
        if self.lora is not None:
            self.lora.attach(network)
        elif self.quantise is None:
            network.requires_grad_(requires_grad=True)
        return network

    def rules(self, meter: Meter) -> DeviceRules:
        """How its device would run it."""
        return DeviceRules(meter, self.compute, full=self.cuda)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a network's weights.

    Attributes:
        total: Bytes of all of them.
        trained: Numbers that are trained.
        largest_block: Bytes of the largest of the blocks that are sharded one by one.
        outside: Bytes of what lies in none of these blocks.
    """

    total: int
    trained: int
    largest_block: int
    outside: int


@cache
def sizes(setup: NetworkSetup) -> Sizes:
    """Count a network's weights."""
    network = _built(replace(setup, checkpointing=False))
    blocks = [_bytes(module) for module in _blocks(network, frozenset(getattr(network, "_no_split_modules", None) or ()))]
    total = _bytes(network)
    return Sizes(
        total=total,
        trained=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        largest_block=max(blocks, default=total),
        outside=total - sum(blocks),
    )


def evaluating(setup: NetworkSetup, rows: int) -> Cost:
    """A pass without a gradient, as rollouts make it."""
    return _for_rows(_evaluating, setup, rows)


def updating(setup: NetworkSetup, rows: int) -> Cost:
    """A forward and a backward pass; gradients of earlier micro-batches are there, and new ones are added to them."""
    return _for_rows(_updating, setup, rows)


def _for_rows(measure: Callable[[NetworkSetup, int], Cost], setup: NetworkSetup, rows: int) -> Cost:
    """A dry run, or for large batches a straight line through two: what grows with the batch decides there, and it is proportional."""
    if rows <= MANY_ROWS:
        return measure(setup, rows)
    half, whole = measure(setup, MANY_ROWS // 2), measure(setup, MANY_ROWS)
    more = 2 * (rows - MANY_ROWS) / MANY_ROWS
    return Cost(
        peak=whole.peak + round(more * (whole.peak - half.peak)),
        operations=whole.operations + more * (whole.operations - half.operations),
    )


@cache
def _evaluating(setup: NetworkSetup, rows: int) -> Cost:
    meter = Meter()
    with torch.no_grad():
        _forward(_network(setup), setup, rows, meter)
    return Cost(peak=meter.peak, operations=meter.operations)


@cache
def _updating(setup: NetworkSetup, rows: int) -> Cost:
    network, meter = _network(setup), Meter()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    meter.known(parameter.grad for parameter in trained if parameter.grad is not None)
    out = _forward(network, setup, rows, meter)
    with meter:
        torch.autograd.backward(out, torch.empty_like(out))
    return Cost(peak=meter.peak, operations=meter.operations)


@cache
def decoding(decoder: Part, geometry: Geometry, rows: int, dtype: torch.dtype = torch.float32) -> Cost:
    """Latents to pictures."""
    network, meter = _frozen(decoder, dtype), Meter()
    latents = torch.empty(rows, *_decoder_latent(decoder, geometry), dtype=dtype, device="meta")
    meter.known([*_weights(network), latents])
    with torch.no_grad(), DeviceRules(meter), meter:
        network.decode(latents, return_dict=False)
    return Cost(peak=meter.peak, operations=meter.operations)


@cache
def picture_scoring(network: Part, rows: int, dtype: torch.dtype = torch.float32) -> Cost:
    """The picture side of a CLIP-like network."""
    module, meter = _frozen(network, dtype), Meter()
    side = network.config["vision_config"]["image_size"]
    pictures = torch.empty(rows, 3, side, side, dtype=dtype, device="meta")
    meter.known([*_weights(module), pictures])
    with torch.no_grad(), DeviceRules(meter), meter:
        module.get_image_features(pixel_values=pictures)
    return Cost(peak=meter.peak, operations=meter.operations)


def _forward(network: Any, setup: NetworkSetup, rows: int, meter: Meter) -> Tensor:
    inputs = network_inputs(setup.part.kind, setup.part.config, setup.geometry, rows, setup.storage)
    meter.known(_weights(network))
    rules = setup.rules(meter)
    if setup.checkpointing:
        network.enable_gradient_checkpointing(rules.checkpoint)
    with rules, meter, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # hints about speed, of which there is none here
        out = network(**inputs, return_dict=False)[0]
        # A list of pictures, as Z-Image gives it, becomes one tensor; the sampler's mathematics is float32.
        return (torch.stack(out) if isinstance(out, list) else out).float()


def _network(setup: NetworkSetup) -> Any:
    """One that no pass has run through, since some keep tables of positions; copying is quicker than building and adapting."""
    return copy.deepcopy(_built(replace(setup, checkpointing=False)))


@lru_cache(maxsize=2)
def _built(setup: NetworkSetup) -> Any:
    return setup.build()


def _decoder_latent(decoder: Part, geometry: Geometry) -> tuple[int, ...]:
    """Decoders of videos take a picture as a video of one frame."""
    picture = 3
    if "dim_mult" in decoder.config and len(geometry.latent) == picture:
        channels, height, width = geometry.latent
        return channels, 1, height, width
    return geometry.latent


def _frozen(part: Part, dtype: torch.dtype) -> Any:
    network = part.build()
    network.requires_grad_(requires_grad=False)
    for tensor in _weights(network):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return network


def _blocks(network: nn.Module, kinds: frozenset[str]) -> Iterator[nn.Module]:
    """The outermost modules of these classes."""
    for child in network.children():
        if type(child).__name__ in kinds:
            yield child
        else:
            yield from _blocks(child, kinds)


def _weights(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _bytes(network: nn.Module) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in _weights(network))
