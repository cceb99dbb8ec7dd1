"""Pictures as PNG files, with their size known before a pixel is decoded."""

from __future__ import annotations

import io
import struct

import numpy as np
import torch
from torch import Tensor

__all__ = ["decode_png", "encode_png", "png_size"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">8sI4sIIBB")  # signature, length and name of the first chunk, width, height, bits, colour type
_MODES = {0: "grey", 2: "RGB"}


def encode_png(levels: Tensor) -> bytes:
    """Write a picture, losslessly.

    Args:
        levels: ``(3, height, width)`` uint8 on the CPU.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def png_size(data: bytes) -> tuple[int, int]:
    """Height and width that a file announces, in pixels; nothing is decoded.

    Raises:
        ValueError: If it is not a PNG of 8-bit RGB or grey.
    """
    if len(data) < _HEADER.size or not data.startswith(_SIGNATURE):
        raise ValueError(f"not a PNG file ({len(data)} bytes); send 8-bit RGB PNG files")
    _, _, name, width, height, bits, colour = _HEADER.unpack_from(data)
    if name != b"IHDR" or bits != 8 or colour not in _MODES:  # noqa: PLR2004 - bits
        raise ValueError("a PNG must be 8-bit RGB or grey, without transparency or palette; convert it first")
    return int(height), int(width)


def decode_png(data: bytes) -> Tensor:
    """Read a picture; ask `png_size` first whether it may be this large.

    Returns:
        ``(3, height, width)`` uint8.

    Raises:
        ValueError: If it is not a PNG of 8-bit RGB or grey, or is truncated or damaged.
    """
    from PIL import Image

    size = png_size(data)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as file:
            levels = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # what Pillow raises on a damaged PNG
        raise ValueError(f"the PNG is truncated or damaged ({error})") from error
    if tuple(levels.shape[1:]) != size:
        raise ValueError(f"the PNG announces {size} pixels and holds {tuple(levels.shape[1:])}")
    return levels
