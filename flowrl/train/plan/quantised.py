"""Packed linear layers without a weight: what they hold, and what they take while they work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from flowrl.models.quantise import FORMS, FourBitLinear, linear_layers

if TYPE_CHECKING:
    from torch import Tensor

    from flowrl.models.options import Quantise

__all__ = ["pack_sizes"]


def pack_sizes(network: Any, form: Quantise, dtype: torch.dtype) -> None:
    """Do to a network on the meta device what :func:`flowrl.models.quantise.quantise_network` does to a real one.

    Raises:
        ConfigError: If the network has no linear layers in blocks.
    """
    kind = _SizedFourBitLinear if form == "nf4" else FORMS[form]
    for parent, name in linear_layers(network):
        layer = getattr(parent, name)
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        setattr(parent, name, kind(layer.in_features, layer.out_features, kind.sizes(layer.out_features, layer.in_features), bias, dtype))


class _SizedFourBitLinear(FourBitLinear):
    """Needs no library."""

    def unpacked(self) -> Tensor:
        """A tensor of the right size, made beside the float32 scales."""
        scales = torch.empty(self.scales.shape, device=self.scales.device)
        return torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device=scales.device)
