"""Train the two digit classifiers of the bundled rewards: ``python -m rewards.train_digit_classifiers [FOLDER]``.

Each sees its own 400 scans and no others; neither sees the generator's. The accuracies it reports are on the 1397 scans that the classifier
has not seen.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, one_hot

from flowrl.shapes import seeded_generator
from flowrl.train.data import DIGIT_PARTS, DigitPart, digit_scans
from rewards.digits import grey_scans
from rewards.legibility import CNN_SHAPES, cnn_logits, kernel_logits

__all__ = ["fit_cnn", "fit_kernel", "main", "unseen_accuracy"]

Kind = Literal["legibility", "heldout"]
Fit = Callable[[Tensor, Tensor], dict[str, Tensor]]

logger = logging.getLogger(__name__)


def fit_cnn(scans: Tensor, labels: Tensor, *, steps: int = 600, seed: int = 0) -> dict[str, Tensor]:
    """The weights of `cnn_logits`, trained on shifted, turned, scaled and noisy copies of the scans.

    Args:
        scans: ``(scan, 1, 8, 8)`` in [0, 1].
        labels: ``(scan,)`` int64.
        steps: Optimiser steps of 64 scans.
        seed: Of first weights, batches and copies.
    """
    generator = seeded_generator(seed)
    arrays = {name: _first_weights(shape, generator) for name, shape in CNN_SHAPES.items()}
    optimizer = torch.optim.AdamW(arrays.values(), lr=3.0e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(scans), (64,), generator=generator)
        loss = cross_entropy(cnn_logits(_vary(scans[rows], generator), arrays), labels[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {name: array.detach() for name, array in arrays.items()}


def fit_kernel(scans: Tensor, labels: Tensor, *, width: float = 1.6, ridge: float = 0.03) -> dict[str, Tensor]:
    """The arrays of `kernel_logits`, in closed form: ``α = (K + ridge·1)⁻¹·Y``.

    The temperature is the one of 50 at which the leave-one-out predictions, ``y_i − α_i / (K + ridge·1)⁻¹_ii``, are most probable.

    Args:
        scans: ``(scan, 1, 8, 8)`` in [0, 1].
        labels: ``(scan,)`` int64.
        width: Of the Gaussian kernel, in grey levels of [0, 1] over 64 pixels.
        ridge: > 0.
    """
    x, y = scans.flatten(1).double(), one_hot(labels, 10).double()
    kernel = torch.exp(-(torch.cdist(x, x) ** 2) / (2 * width**2))
    inverse = torch.linalg.inv(kernel + ridge * torch.eye(len(x), dtype=torch.float64))
    coefficients = inverse @ y
    left_out = y - coefficients / inverse.diagonal()[:, None]
    temperature = min(torch.logspace(-2, 0, 50, dtype=torch.float64), key=lambda value: float(cross_entropy(left_out / value, labels)))
    arrays = {"scans": x, "coefficients": coefficients, "width": torch.tensor(width), "temperature": temperature}
    return {name: array.float().contiguous() for name, array in arrays.items()}


def unseen_accuracy(kind: Kind, arrays: dict[str, Tensor]) -> float:
    """Share of the scans outside its own part that a classifier reads rightly.

    Args:
        kind: Its part of the digits, ``"legibility"`` (the network) or ``"heldout"`` (the kernel).
        arrays: Its weights.
    """
    parts = [_grey_part(part) for part in DIGIT_PARTS if part != kind]
    scans, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    logits = {"legibility": cnn_logits, "heldout": kernel_logits}[kind](scans, arrays)
    return float((logits.argmax(-1) == labels).double().mean())


def main(folder: str = "assets/classifiers") -> None:
    """Train both, write them to a folder, log their accuracies."""
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    jobs: tuple[tuple[Kind, str, Fit], ...] = (("legibility", "digit_cnn", fit_cnn), ("heldout", "digit_kernel", fit_kernel))
    for kind, name, fit in jobs:
        arrays = fit(*_grey_part(kind))
        path = Path(folder, f"{name}.safetensors")
        save_file(arrays, path)
        logger.info("%s: accuracy %.4f on scans it has not seen", path, unseen_accuracy(kind, arrays))


def _grey_part(part: DigitPart) -> tuple[Tensor, Tensor]:
    """The scans as the rewards see them: enlarged to a picture, then averaged down."""
    images, labels = digit_scans(part)
    return grey_scans(images, [""] * len(images)), labels


def _first_weights(shape: tuple[int | None, ...], generator: torch.Generator) -> Tensor:
    """He's initialisation; biases start at 0."""
    sizes = [int(length or 0) for length in shape]
    weight = torch.zeros(sizes)
    if len(sizes) > 1:
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    return weight.requires_grad_()


def _vary(scans: Tensor, generator: torch.Generator) -> Tensor:
    """Each scan turned by about 8 degrees, sheared and scaled by about 8 %, shifted by about a third of a pixel, with noise of std 0.05."""
    near_identity = torch.eye(2, 3) + torch.randn(len(scans), 2, 3, generator=generator) * torch.tensor([0.1, 0.1, 0.08])
    moved = grid_sample(scans, affine_grid(near_identity, list(scans.shape), align_corners=False), align_corners=False)
    return moved + 0.05 * torch.randn(scans.shape, generator=generator)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(*sys.argv[1:])
