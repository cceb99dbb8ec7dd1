"""Times that broadcast, noise that is reproducible, reductions over a state's axes, and the levels of a picture file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = [
    "RandomSource",
    "Time",
    "expand_time",
    "float_dtype",
    "levels_of",
    "randn",
    "seeded_generator",
    "spread",
    "state_mean",
    "state_sum",
]

Time: TypeAlias = Tensor | float
"""A noise level in [0, 1]: a number, or a tensor whose shape is a prefix of the state's shape."""

RandomSource: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""One generator, or one per equal block of leading rows, or torch's global one."""

_MASK_63_BITS = (1 << 63) - 1


def float_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which these tensors are computed with: the widest of theirs, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def expand_time(t: Time, like: Tensor) -> Tensor:
    """Give a time trailing axes of length 1 so that it broadcasts over a state.

    Args:
        t: Shape ``()``, or a prefix of ``like``'s: ``(batch,)``, ``(batch, token)``.
        like: The state, ``(batch, ...)``.

    Returns:
        float32 at least, on the state's device, with as many axes as the state.

    Raises:
        ValueError: If the shape of ``t`` is not a prefix of the state's.
    """
    # A Python number carries no precision of its own: it takes the state's.
    dtype = float_dtype(t, like) if isinstance(t, Tensor) else float_dtype(like)
    time = torch.as_tensor(t, device=like.device, dtype=dtype)
    if time.shape != like.shape[: time.ndim]:
        raise ValueError(
            f"a time of shape {tuple(time.shape)} does not fit a state of shape {tuple(like.shape)}; "
            "give a scalar or a prefix of the state's axes, such as (batch,) or (batch, token)"
        )
    return time.reshape(time.shape + (1,) * (like.ndim - time.ndim))


def randn(shape: Sequence[int], generator: RandomSource, *, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw standard normal noise on the generator's own device, then move it.

    A CPU generator therefore gives the same numbers whatever device the model is on, and a sequence
    of generators (one per prompt) gives a prompt the same numbers whichever process handles it.

    Args:
        shape: Shape of the result; with a sequence of ``n`` generators the first axis is split into ``n`` equal blocks.
        generator: One generator, a sequence of them, or None for torch's global generator.
        device: Where the result lives.
        dtype: Of the result.

    Raises:
        ValueError: If the first axis cannot be split evenly.
    """
    if isinstance(generator, Sequence):
        if not generator or shape[0] % len(generator):
            raise ValueError(f"{shape[0]} rows cannot be split evenly over {len(generator)} generators; give one generator per prompt")
        block = (shape[0] // len(generator), *shape[1:])
        return torch.cat([randn(block, g, device=device, dtype=dtype) for g in generator])
    source = device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)


def seeded_generator(*key: int) -> torch.Generator:
    """A CPU generator determined by a key alone, so that no generator state has to be stored to resume a run.

    Args:
        key: Integers that name the draw, such as ``(seed, update, prompt slot)``.
    """
    state = 0
    for part in key:  # splitmix64: neighbouring keys give unrelated seeds
        state = (state + part + 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
        state ^= state >> 31
    return torch.Generator().manual_seed(state & _MASK_63_BITS)


def spread(length: int, count: int) -> list[int]:
    """Positions spread evenly from the first to the last of ``length``, in order, each once; of one, the middle.

    Args:
        length: At least 1.
        count: How many, at least 1; ``length`` at most come back.
    """
    if count == 1:
        return [length // 2]
    return [round(index * (length - 1) / (count - 1)) for index in range(count)] if count < length else list(range(length))


def state_mean(x: Tensor) -> Tensor:
    """Mean over every axis but the first, ``(batch, ...) -> (batch,)``."""
    return x.flatten(1).mean(1) if x.ndim > 1 else x


def state_sum(x: Tensor) -> Tensor:
    """Sum over every axis but the first, ``(batch, ...) -> (batch,)``."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def levels_of(pictures: Tensor) -> Tensor:
    """The 8-bit levels 0 to 255 that a picture file would hold, as float32; values outside [0, 1] are cut off.

    Args:
        pictures: Any shape, in [0, 1].
    """
    return pictures.detach().float().clamp(0, 1).mul(255).round()
