"""Packed linear layers without a weight: what they hold, and what they take while they work."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from flowrl.models.quantise import FORMS, linear_layers

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.models.options import Quantise
    from flowrl.models.quantise import QuantisedLinear

__all__ = ["pack_sizes"]


def pack_sizes(network: Any, form: Quantise, dtype: torch.dtype) -> None:
    """Do to a network on the meta device what :func:`flowrl.models.quantise.quantise_network` does to a real one.

    Raises:
        ConfigError: If the network has no linear layers in blocks.
    """
    kind = _sized(FORMS[form])
    for parent, name in linear_layers(network):
        layer = getattr(parent, name)
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        setattr(parent, name, kind(layer.in_features, layer.out_features, kind.sizes(layer.out_features, layer.in_features), bias, dtype))


@cache
def _sized(form: type[QuantisedLinear]) -> type[QuantisedLinear]:
    """The form with an unpacking that makes tensors of the right size and computes nothing."""

    def unpacked(layer: QuantisedLinear) -> Tensor:
        # Both forms make float32 numbers on the way: scales, one for 64 weights, or the whole weights in 8 bits.
        made = layer.scales.numel() if layer.scales.dtype == torch.uint8 else layer.weight.numel()
        on_the_way = torch.empty(made, device="meta")
        shape = layer.out_features, layer.in_features
        return torch.empty(shape, dtype=layer.compute_dtype, device=on_the_way.device)

    return type(form.__name__, (form,), {"unpacked": unpacked})
