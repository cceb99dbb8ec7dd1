"""What the digit rewards share: which digit a prompt names, and the 8 x 8 grey picture that the classifiers look at."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.config import asset_path
from flowrl.errors import CheckpointError, ConfigError
from flowrl.models.weights import read_safetensors
from flowrl.train.data import DIGIT_WORDS, digit_scans
from rewards.known_answers import KnownAnswer
from rewards.pictures import check_samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["TRAIN_COMMAND", "grey_scans", "known_digits", "load_classifier", "named_digits"]

TRAIN_COMMAND = "python -m rewards.train_digit_classifiers"
SCAN_SIDE = 8  # pixels, of the scans that the classifiers were trained on
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_DIGIT = re.compile(rf"\b({'|'.join(DIGIT_WORDS)})\b", re.IGNORECASE)


def named_digits(prompts: Sequence[str]) -> Tensor:
    """The digit that each prompt names in words, ``(prompt,)`` int64.

    Raises:
        ValueError: If a prompt names no digit or more than one.
    """
    return torch.tensor([_named_digit(prompt) for prompt in prompts], dtype=torch.long)


@lru_cache(maxsize=4096)
def _named_digit(prompt: str) -> int:
    named = {word.lower() for word in _DIGIT.findall(prompt)}
    if len(named) != 1:
        found = " and ".join(sorted(named, key=DIGIT_WORDS.index)) or "none"
        raise ValueError(
            f"a digit reward needs prompts that name exactly one digit in words ({', '.join(DIGIT_WORDS)}); {prompt!r} names {found}"
        )
    return DIGIT_WORDS.index(named.pop())


def grey_scans(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """BT.601 luma of pictures, averaged down to the scans' 8 x 8 pixels.

    Args:
        samples: ``(batch, 3, height, width)`` in [0, 1], height and width at least 8, any dtype and device.
        prompts: One per picture; only counted.

    Returns:
        ``(batch, 1, 8, 8)`` float32 on the samples' device.

    Raises:
        ValueError: If the pictures have another shape, or there is not one prompt per picture.
    """
    check_samples(samples, prompts, least_side=SCAN_SIDE)
    luma = torch.tensor(_LUMA, device=samples.device).view(3, 1, 1)
    grey = (samples.detach().float() * luma).sum(1, keepdim=True)
    return torch.nn.functional.adaptive_avg_pool2d(grey, SCAN_SIDE)


def known_digits() -> tuple[KnownAnswer, ...]:
    """The first scan of each digit that no generator and no classifier was trained on, each under every digit's prompt."""
    scans, digits = digit_scans("test", image_size=16)
    first = torch.stack([scans[(digits == digit).nonzero()[0, 0]] for digit in range(len(DIGIT_WORDS))])
    prompts = [f"the digit {word}" for word in DIGIT_WORDS]
    return (KnownAnswer.matching("scans of digits", first, prompts, share=0.95, hint=f"is the classifier's file whole? {TRAIN_COMMAND}"),)


def load_classifier(path: str, shapes: Mapping[str, tuple[int | None, ...]], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read a classifier's arrays; each file is read once per process and device.

    Args:
        path: A safetensors file, or the name of a bundled asset such as ``assets/classifiers/digit_cnn.safetensors``.
        shapes: The arrays it must hold; None is any length.
        device: Where they are put.

    Raises:
        CheckpointError: If the file is missing or truncated, or holds other arrays; the message names the command that makes it.
    """
    arrays = _read(path, str(device))
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    same = found.keys() == shapes.keys() and all(_matches(found[name], shape) for name, shape in shapes.items())
    if not same:
        raise CheckpointError(
            f"{path} is not this kind of classifier: it holds {found}, expected {dict(shapes)}; make it with: {TRAIN_COMMAND}"
        )
    return arrays


def _matches(found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(found) == len(expected) and all(e in (None, f) for f, e in zip(found, expected, strict=True))


@lru_cache(maxsize=16)
def _read(path: str, device: str) -> dict[str, Tensor]:
    try:
        found = Path(path) if Path(path).is_file() else asset_path(path)
        arrays, _ = read_safetensors(found)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"cannot read the classifier {path}: {error}; make it with: {TRAIN_COMMAND}") from error
    return {name: array.to(device) for name, array in arrays.items()}
