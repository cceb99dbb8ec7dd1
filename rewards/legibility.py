"""Legibility: how surely independent classifiers read the digit that the prompt names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, log_softmax, max_pool2d

from flowrl.rl import RewardBatch
from rewards.digits import grey_scans, known_digits, load_classifier, named_digits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewards.known_answers import KnownAnswer

__all__ = ["CNN_SHAPES", "KERNEL_SHAPES", "HeldoutLegibility", "Legibility", "cnn_logits", "kernel_logits"]

CNN_SHAPES: dict[str, tuple[int | None, ...]] = {
    "conv1.weight": (16, 1, 3, 3),
    "conv1.bias": (16,),
    "conv2.weight": (32, 16, 3, 3),
    "conv2.bias": (32,),
    "hidden.weight": (64, 512),
    "hidden.bias": (64,),
    "output.weight": (10, 64),
    "output.bias": (10,),
}
KERNEL_SHAPES: dict[str, tuple[int | None, ...]] = {"scans": (None, 64), "coefficients": (None, 10), "width": (), "temperature": ()}


class _OfDigits:
    """What the two rewards share."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that do not name exactly one digit.

        Raises:
            ValueError: If one does not.
        """
        named_digits(prompts)

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Scans of digits that no one was trained on."""
        return known_digits()


@dataclass(frozen=True, kw_only=True)
class Legibility(_OfDigits):
    """Log-probability, in nats, that a small convolutional network gives to the digit that the prompt names.

    It was trained on scans that the generator has not seen, with 10 % label smoothing, which keeps the log-probability of a wrong digit
    near ``log 0.01`` instead of far below.

    Attributes:
        classifier: Its weights, a bundled asset or a file.

    Raises:
        CheckpointError: If the weights cannot be read.
    """

    classifier: str = "assets/classifiers/digit_cnn.safetensors"

    def __post_init__(self) -> None:
        load_classifier(self.classifier, CNN_SHAPES)

    @property
    def weights(self) -> Mapping[str, float]:
        """One part, ``legibility``."""
        return {"legibility": 1.0}

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score pictures; see `flowrl.rl.Reward`.

        Raises:
            ValueError: If the samples are not pictures, or a prompt does not name exactly one digit.
        """
        scans, digits = grey_scans(samples, prompts), named_digits(prompts)
        log_prob = log_softmax(cnn_logits(scans, load_classifier(self.classifier, CNN_SHAPES, samples.device)), dim=-1)
        return RewardBatch({"legibility": _of_named(log_prob, digits)})


@dataclass(frozen=True, kw_only=True)
class HeldoutLegibility(_OfDigits):
    """How a classifier of another kind, which no training may see, reads the pictures: kernel ridge regression on other scans.

    Parts: ``heldout_probability`` of the named digit, and ``heldout_accuracy``, 1 where the named digit is the most probable, else 0.

    Attributes:
        classifier: Its arrays, a bundled asset or a file.

    Raises:
        CheckpointError: If the arrays cannot be read.
    """

    classifier: str = "assets/classifiers/digit_kernel.safetensors"

    def __post_init__(self) -> None:
        load_classifier(self.classifier, KERNEL_SHAPES)

    @property
    def weights(self) -> Mapping[str, float]:
        """Two parts, ``heldout_probability`` and ``heldout_accuracy``."""
        return {"heldout_probability": 1.0, "heldout_accuracy": 1.0}

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score pictures; see `flowrl.rl.Reward`.

        Raises:
            ValueError: If the samples are not pictures, or a prompt does not name exactly one digit.
        """
        scans, digits = grey_scans(samples, prompts), named_digits(prompts)
        logits = kernel_logits(scans, load_classifier(self.classifier, KERNEL_SHAPES, samples.device))
        correct = logits.argmax(-1) == digits.to(logits.device)
        # A picture with a NaN pixel has no most probable digit: NaN, so that the trainer stops instead of counting it as wrong.
        accuracy = correct.float() + 0 * logits.sum(-1)
        return RewardBatch({"heldout_probability": _of_named(logits.softmax(-1), digits), "heldout_accuracy": accuracy})


def cnn_logits(scans: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
    """Two 3 x 3 convolutions, 2 x 2 max pooling, two linear layers, ReLU between them.

    Args:
        scans: ``(batch, 1, 8, 8)`` in [0, 1].
        arrays: Weights and biases, named and shaped as `CNN_SHAPES`.

    Returns:
        ``(batch, digit)``, before the softmax.
    """
    x = conv2d(scans, arrays["conv1.weight"], arrays["conv1.bias"], padding=1).relu()
    x = conv2d(x, arrays["conv2.weight"], arrays["conv2.bias"], padding=1).relu()
    x = linear(max_pool2d(x, 2).flatten(1), arrays["hidden.weight"], arrays["hidden.bias"]).relu()
    return linear(x, arrays["output.weight"], arrays["output.bias"])


def kernel_logits(scans: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
    """Kernel ridge regression onto the one-hot digit, divided by a temperature: ``Σ_i exp(−‖x − x_i‖² / (2·width²))·α_i / temperature``.

    Args:
        scans: ``(batch, 1, 8, 8)`` in [0, 1].
        arrays: Training scans ``x_i``, coefficients ``α_i``, kernel width and temperature, named and shaped as `KERNEL_SHAPES`.

    Returns:
        ``(batch, digit)``, before the softmax.
    """
    distances = torch.cdist(scans.flatten(1), arrays["scans"], compute_mode="donot_use_mm_for_euclid_dist")
    kernel = torch.exp(-(distances**2) / (2 * arrays["width"] ** 2))
    return kernel @ arrays["coefficients"] / arrays["temperature"]


def _of_named(values: Tensor, digits: Tensor) -> Tensor:
    return values.gather(-1, digits.to(values.device)[:, None])[:, 0]
