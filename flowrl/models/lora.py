"""Low-rank adapters on a transformer, through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flowrl.errors import ConfigError

__all__ = ["ADAPTER", "ATTENTION", "LoRA"]

ADAPTER = "default"
"""Name of the one adapter that is trained."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv_mlp_proj")
"""The attention projections of diffusers' transformers, image and text stream; a model that lacks some of them has the others adapted.

``to_qkv_mlp_proj`` is what FLUX.2's single-stream blocks, most of its blocks, have in place of the first three."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """``W + alpha/rank · B·A`` on the chosen linear layers (arXiv:2106.09685, Sec. 4.1); W is frozen, B starts at 0.

    There is no dropout: a policy that differs between rollout and update has a ratio other than 1.

    Attributes:
        rank: Inner dimension, at least 1. Flow-GRPO takes 32 for SD3.5 and 64 for FLUX.1.
        alpha: Numerator of the adapter's scale, > 0; Flow-GRPO takes twice the rank.
        targets: Ends of the names of the layers to adapt.
        seed: Of A's random values, so that every process and every run starts alike.

    Raises:
        ConfigError: If the rank is below 1, alpha is not positive, or there are no targets.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ATTENTION
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"LoRA rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ConfigError(f"LoRA alpha must be > 0, got {self.alpha}; alpha = rank is a scale of 1")
        if not self.targets:
            raise ConfigError("LoRA needs at least one target layer; leave `targets` out for the attention projections")

    def attach(self, module: Any) -> None:
        """Add the adapter to a diffusers network, in place: its weights are float32 and train, everything else is frozen.

        Raises:
            ConfigError: If no layer of the network has a name that ends in one of the targets.
        """
        from peft import LoraConfig

        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets))
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)  # the CPU's, which fork_rng restores
                module.add_adapter(config, adapter_name=ADAPTER)
        except ValueError as error:
            layers = sorted({name.rsplit(".", 1)[-1] for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)})
            raise ConfigError(
                f"no layer of {type(module).__name__} ends in one of {list(self.targets)}; its layers end in {layers}"
            ) from error
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def metadata(self) -> dict[str, Any]:
        """What ``load_lora_weights`` needs beside the weights: they do not tell alpha, without which the adapter has another strength."""
        patterns: dict[str, int] = {}  # none; diffusers 0.36 stops without them
        saved = {"r": self.rank, "lora_alpha": self.alpha, "target_modules": sorted(self.targets)}
        return saved | {"rank_pattern": patterns, "alpha_pattern": patterns}
