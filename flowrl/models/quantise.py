"""Frozen linear layers held in 4 bits (QLoRA, arXiv:2305.14314; through bitsandbytes) or 8 under a LoRA.

A layer's weights are unpacked to the network's dtype whenever they are used, in the forward and in the backward pass, and kept packed in
between. This alone rounds them: activations stay as they are, so that a row's result does not depend on the rows beside it, and rollout and
update see the same network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from flowrl.errors import ConfigError, MissingExtraError, require
from flowrl.models.speed import repeated_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowrl.models.options import Quantise

__all__ = ["FORMS", "EightBitLinear", "FourBitLinear", "QuantisedLinear", "linear_layers", "quantise_network", "try_form"]

BLOCK = 64  # weights that share a scale (arXiv:2305.14314, Sec. 3)
LARGEST = 127  # of 8 bits
SCALES_BLOCK = 256  # scales that share a scale: "double quantization", likewise
TOLERANCE = {"nf4": 0.2, "int8": 0.01}  # of a weight, relative to the largest beside it; half of the largest gap is 0.152 and 0.004


class QuantisedLinear(nn.Linear, ABC):
    """A frozen linear layer whose weights are packed; a subclass says how."""

    held: ClassVar[tuple[str, ...]]
    """Names of the packed tensors."""

    scales: nn.Parameter
    compute_dtype: torch.dtype

    def __init__(self, in_features: int, out_features: int, packed: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype) -> None:
        """Take packed tensors over.

        Args:
            in_features: Of the layer.
            out_features: Likewise.
            packed: As :meth:`pack` gives them.
            bias: In ``dtype``.
            dtype: In which the layer computes.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.compute_dtype = in_features, out_features, dtype
        for name in self.held:
            self.register_parameter(name, nn.Parameter(packed[name], requires_grad=False))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @staticmethod
    @abstractmethod
    def pack(weight: Tensor) -> dict[str, Tensor]:
        """Round weights ``(out, in)`` to what is held, where they are."""

    @staticmethod
    @abstractmethod
    def sizes(out_features: int, in_features: int) -> dict[str, Tensor]:
        """What :meth:`pack` would give, on the meta device: counts the bytes without a library or a weight."""

    @abstractmethod
    def unpacked(self) -> Tensor:
        """The rounded weights ``(out, in)`` in the dtype of computing."""

    def forward(self, x: Tensor) -> Tensor:
        """``x W^T + b`` in the dtype of computing, whatever autocast says."""
        return _Product.apply(x.to(self.compute_dtype), self)  # type: ignore[no-untyped-call]


class FourBitLinear(QuantisedLinear):
    """NormalFloat of 4 bits: 16 levels at a normal distribution's quantiles, one scale for 64 weights, itself held in 8 bits."""

    held = ("weight", "scales", "scales_of_scales", "offset")

    @staticmethod
    def pack(weight: Tensor) -> dict[str, Tensor]:
        """See :class:`QuantisedLinear`."""
        numbers = _functional()
        packed, state = numbers.quantize_4bit(weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
        return {"weight": packed, "scales": state.absmax, "scales_of_scales": state.state2.absmax, "offset": state.offset}

    @staticmethod
    def sizes(out_features: int, in_features: int) -> dict[str, Tensor]:
        """See :class:`QuantisedLinear`: 0.516 bytes a weight."""
        weights = out_features * in_features
        blocks = math.ceil(weights / BLOCK)
        return {
            "weight": torch.empty((weights + 1) // 2, 1, dtype=torch.uint8, device="meta"),
            "scales": torch.empty(blocks, dtype=torch.uint8, device="meta"),
            "scales_of_scales": torch.empty(math.ceil(blocks / SCALES_BLOCK), device="meta"),
            "offset": torch.empty((), device="meta"),
        }

    def unpacked(self) -> Tensor:
        """See :class:`QuantisedLinear`."""
        numbers = _functional()
        table = _table(self.weight.device)
        scales = numbers.QuantState(absmax=self.scales_of_scales, code=table, blocksize=SCALES_BLOCK, dtype=torch.float32)
        shape = torch.Size((self.out_features, self.in_features))
        state = {"shape": shape, "dtype": self.compute_dtype, "blocksize": BLOCK, "quant_type": "nf4"}
        return numbers.dequantize_4bit(
            self.weight, numbers.QuantState(absmax=self.scales, offset=self.offset, state2=scales, code=None, **state)
        )


class EightBitLinear(QuantisedLinear):
    """Whole numbers from -127 to 127, one scale for each output (arXiv:2208.07339, Sec. 2); needs no library.

    bitsandbytes' own layer would round activations too, and with outliers by the whole batch.
    """

    held = ("weight", "scales")

    @staticmethod
    def pack(weight: Tensor) -> dict[str, Tensor]:
        """See :class:`QuantisedLinear`."""
        scales = weight.abs().amax(1).float().clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
        return {"weight": (weight / scales[:, None]).round().to(torch.int8), "scales": scales}

    @staticmethod
    def sizes(out_features: int, in_features: int) -> dict[str, Tensor]:
        """See :class:`QuantisedLinear`: a byte a weight and 4 an output."""
        return {
            "weight": torch.empty(out_features, in_features, dtype=torch.int8, device="meta"),
            "scales": torch.empty(out_features, device="meta"),
        }

    def unpacked(self) -> Tensor:
        """See :class:`QuantisedLinear`."""
        return (self.weight * self.scales[:, None]).to(self.compute_dtype)


FORMS: Mapping[str, type[QuantisedLinear]] = {"nf4": FourBitLinear, "int8": EightBitLinear}


class _Product(torch.autograd.Function):
    """``x W^T + b`` that keeps neither x nor the unpacked W for the backward pass: the layer is frozen, and W is unpacked again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.unpacked(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return torch.matmul(gradients[0], ctx.layer.unpacked()), None


def quantise_network(network: nn.Module, form: Quantise, *, dtype: torch.dtype, device: torch.device) -> None:
    """Exchange the linear layers of a network's blocks for packed ones, in place and one by one, so that few are there twice.

    What lies outside of the blocks stays as it is: the embeddings of tokens, text and time, and the final projection.

    Args:
        network: A diffusers network, on the CPU; its packed layers end up on the device.
        form: ``nf4`` or ``int8``.
        dtype: In which the network computes.
        device: Where.

    Raises:
        ConfigError: If the network has no blocks.
        MissingExtraError: If bitsandbytes is needed and not installed.
    """
    kind = FORMS[form]
    for parent, name in linear_layers(network):
        layer = getattr(parent, name)
        packed = kind.pack(layer.weight.detach().to(device))
        bias = None if layer.bias is None else layer.bias.detach().to(device, dtype)
        setattr(parent, name, kind(layer.in_features, layer.out_features, packed, bias, dtype))


def linear_layers(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """The layers that are packed: the linear ones inside the network's repeated blocks, by parent and name there.

    Raises:
        ConfigError: If there are none.
    """
    parents = {parent: None for block in repeated_blocks(network) for parent in block.modules()}
    found = [(parent, name) for parent in parents for name, layer in parent.named_children() if type(layer) is nn.Linear]
    if not found:
        raise ConfigError(f"{type(network).__name__} has no linear layers in repeated blocks; leave `quantise` out")
    return found


def try_form(form: Quantise, *, dtype: torch.dtype, device: torch.device) -> None:
    """Pack a small layer, and see that it gives back its weights forwards and backwards.

    Args:
        form: ``nf4`` or ``int8``.
        dtype: In which it computes.
        device: Where.

    Raises:
        ConfigError: If this does not work here.
        MissingExtraError: If bitsandbytes is needed and not installed.
    """
    kind = FORMS[form]
    weight = torch.randn(BLOCK, 2 * BLOCK, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    try:
        layer = kind(weight.shape[1], weight.shape[0], kind.pack(weight), None, dtype)
        x = torch.eye(weight.shape[1], dtype=dtype, device=device).requires_grad_()
        with torch.enable_grad():
            found = layer(x)
        (gradient,) = torch.autograd.grad(found, x, torch.eye(weight.shape[0], weight.shape[1], dtype=dtype, device=device).T)
        largest = weight.abs().max()
        worst = max(float((result - weight).abs().max() / largest) for result in (found.detach().T, gradient[: len(weight)]))
    except MissingExtraError:
        raise
    except Exception as error:  # whatever a foreign kernel raises where it is missing or does not fit
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _refused(form, device, dtype, reason) from error
    if not worst < TOLERANCE[form]:
        raise _refused(form, device, dtype, f"it is off by {worst:.2g} of the largest weight")


def _refused(form: str, device: torch.device, dtype: torch.dtype, why: str) -> ConfigError:
    name = str(dtype).removeprefix("torch.")
    return ConfigError(
        f"quantise={form!r} cannot be had here, on {device.type} in {name}: {why}; leave `quantise` out, or update bitsandbytes"
    )


def _functional() -> Any:
    return require("bitsandbytes.functional", "bitsandbytes")


@cache
def _table(device: torch.device) -> Tensor:
    """The 256 levels of the scales."""
    return _functional().create_dynamic_map().to(device)
