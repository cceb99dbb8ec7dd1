"""Numbers, times and names as people read them, in reports and on the terminal."""

from __future__ import annotations

import math

__all__ = ["SMALL", "duration", "figure", "memory", "signed", "words"]

SMALL, THOUSAND, LARGE = 1e-3, 1e3, 1e6  # where figures change their form
MINUTE, HOUR = 60.0, 3600.0  # seconds
KIBI = 1024.0
MOST_DECIMALS = 5


def figure(value: float, digits: int = 4) -> str:
    """Write a number: so many significant digits, thousands separated, a real minus sign."""
    if not math.isfinite(value):
        return "not finite"
    if value and not SMALL <= abs(value) < LARGE:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if abs(value) < SMALL else f"{value:,.0f}"
    else:
        text = f"{value:,.0f}" if abs(value) >= THOUSAND or float(value).is_integer() else f"{value:.{digits}g}"
    return text.replace("-", "−")


def signed(difference: float, ci95: float | None) -> str:
    """Write a change with its half-width, both to the half-width's second digit: +0.38 ± 0.11; ≈ 0 where neither has a digit left."""
    if not ci95:
        return ("+" if difference > 0 else "") + figure(difference, 3)
    if max(abs(difference), ci95) < 0.5 * 10**-MOST_DECIMALS:
        return "≈ 0"
    decimals = min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(ci95))))
    return f"{difference:+.{decimals}f} ± {ci95:.{decimals}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Write a time: 42.0 s, 3 min 05 s, 2 h 07 min."""
    if seconds < MINUTE:
        return f"{seconds:.1f} s"
    if seconds < HOUR:
        return f"{int(seconds // MINUTE)} min {int(seconds % MINUTE):02d} s"
    return f"{int(seconds // HOUR)} h {int(seconds % HOUR // MINUTE):02d} min"


def memory(size: float) -> str:
    """Write a number of bytes: 512 B, 1.9 KiB, 4.8 GiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log(size, KIBI))) if size >= 1 else 0
    return f"{size / KIBI**power:.3g} {units[power]}"


def words(name: str) -> str:
    """Write a field's name: ``heldout_accuracy`` is held-out accuracy."""
    return name.replace("heldout", "held-out").replace("_", " ")
