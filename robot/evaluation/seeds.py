"""Seeds of episodes: ranges as people write them, and sets that must not overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check_disjoint", "parse_seeds"]

_SHOWN = 5


def parse_seeds(seeds: str | Sequence[int]) -> tuple[int, ...]:
    """The seeds that a text or a list names.

    Args:
        seeds: Ranges ``A:B`` (``B`` is left out) and single numbers, separated by commas: ``"0:50,100"``; or the numbers themselves.

    Raises:
        ConfigError: If it names none, one is negative or no number, a range is empty, or one comes twice.
    """
    found = [seed for part in seeds.split(",") for seed in _part(part, seeds)] if isinstance(seeds, str) else [int(seed) for seed in seeds]
    if not found or min(found) < 0:
        raise ConfigError(f"seeds must be whole numbers >= 0, at least one, got {seeds!r}; write them like 0:50 or 0:50,100")
    if len(set(found)) < len(found):
        twice = sorted({seed for seed in found if found.count(seed) > 1})
        raise ConfigError(f"every seed is one episode, but {_some(twice)} come twice in {seeds!r}")
    return tuple(found)


def check_disjoint(selection: Sequence[int], report: Sequence[int]) -> None:
    """Make sure that what was chosen on some seeds is reported on others.

    Args:
        selection: Seeds that the choice saw.
        report: Seeds of the reported success.

    Raises:
        ConfigError: If they share a seed.
    """
    if shared := sorted(set(selection) & set(report)):
        raise ConfigError(
            f"selection and report seeds must be disjoint, both hold {_some(shared)}; a choice looks better than it is on the seeds that "
            "made it"
        )


def _part(part: str, whole: str) -> range:
    """One range or number."""
    try:
        first, colon, end = part.partition(":")
        found = range(int(first), int(end) if colon else int(first) + 1)
    except ValueError:
        raise ConfigError(f"seeds must read A:B or be numbers, got {part.strip()!r} in {whole!r}; 0:50 means 0 to 49") from None
    if not found:
        raise ConfigError(f"the range {part.strip()!r} of seeds is empty; A:B means A to B − 1, so B must be greater than A")
    return found


def _some(seeds: Sequence[int]) -> str:
    more = f" and {len(seeds) - _SHOWN} more" if len(seeds) > _SHOWN else ""
    return ", ".join(map(str, seeds[:_SHOWN])) + more
