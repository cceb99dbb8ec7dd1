"""How much one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Limits", "TooLargeError"]


class TooLargeError(ValueError):
    """A request is larger than the server allows; sent apart, its samples may pass."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request may ask for, and how long it may take.

    Attributes:
        body_mb: Of one request, in MB (10⁶ bytes).
        pictures: Of one request; every frame of a video counts.
        pixels: Of one picture, height times width.
        total_pixels: Of all pictures of a request; one takes 12 bytes in memory.
        requests: Under way at once; more are told to come again.
        timeout_s: From the first byte of a request to its answer, in seconds.
        receive_s: In which the body must have come, in seconds.

    Raises:
        ConfigError: If one is not positive.
    """

    body_mb: float = 256.0
    pictures: int = 256
    pixels: int = 2**22
    total_pixels: int = 2**27
    requests: int = 64
    timeout_s: float = 300.0
    receive_s: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} must be > 0, got {value}")

    @property
    def body_bytes(self) -> int:
        """Of one request."""
        return round(self.body_mb * 1e6)

    def check_body(self, size: int) -> None:
        """Refuse a body that is too large.

        Raises:
            TooLargeError: If it is.
        """
        if size > self.body_bytes:
            raise TooLargeError(
                f"the body has {size / 1e6:.4g} MB or more, at most {self.body_mb:g} are allowed (limits.body_mb); "
                "send fewer pictures at a time (batch) or smaller ones (wire: uint8 or png)"
            )

    def check_pictures(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Refuse too many or too large pictures, before they are decoded.

        Args:
            sizes: Height and width of each, in pixels.

        Raises:
            TooLargeError: If they are.
        """
        if len(sizes) > self.pictures:
            raise TooLargeError(f"got {len(sizes)} pictures, at most {self.pictures} are allowed at a time (limits.pictures)")
        height, width = max(sizes, key=lambda size: size[0] * size[1])
        if height * width > self.pixels:
            raise TooLargeError(f"a picture has {height} x {width} pixels, at most {self.pixels} are allowed (limits.pixels)")
        if (total := sum(height * width for height, width in sizes)) > self.total_pixels:
            raise TooLargeError(
                f"the pictures have {total} pixels, at most {self.total_pixels} are allowed at a time (limits.total_pixels)"
            )
