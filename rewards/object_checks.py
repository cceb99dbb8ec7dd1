"""Whether detected objects are what a prompt asks for: GenEval's rules (arXiv:2310.11513, Sec. 3) on boxes, without any network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["COLOURS", "POSITIONS", "Box", "Detection", "Requirement", "Verdict", "judge", "kept", "relations", "requirements"]

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels from the picture's top left corner."""

_MARGIN = 0.1  # of the two sizes: centres nearer than this are neither left nor right
_SLANT = 0.5  # least share of the offset along an axis
_MOST = 16  # objects counted per class


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object that a detector found.

    Attributes:
        name: Which of the asked names it is.
        score: How sure the detector is, in [0, 1].
        box: Where it is.
    """

    name: str
    score: float
    box: Box


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One entry of a prompt's ``include`` or ``exclude``.

    Attributes:
        name: Of the objects.
        count: How many there must be; of an ``exclude``, the first number that is too many.
        colour: One of `COLOURS` that all must have, or None.
        position: One of `POSITIONS`, or None.
        target: Index of the entry relative to whose objects the position is.
    """

    name: str
    count: int = 1
    colour: str | None = None
    position: str | None = None
    target: int = 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a picture fares.

    Attributes:
        score: Flow-GRPO's partial reward, at most 1; negative where far too many objects are found.
        correct: Whether it passes GenEval's own test.
        reasons: What is wrong, one text each.
    """

    score: float
    correct: bool
    reasons: tuple[str, ...] = ()


def requirements(facts: Mapping[str, Any]) -> tuple[tuple[Requirement, ...], tuple[Requirement, ...]]:
    """What a prompt's facts ask for and what they forbid, in the keys of GenEval's ``evaluation_metadata.jsonl``.

    Args:
        facts: ``include`` and ``exclude``, lists of ``{"class": "bench", "count": 2, "color": "red", "position": ["left of", 0]}`` of
            which the last two may be absent.

    Raises:
        ValueError: If there is no ``include``, or an entry is not of that form.
    """
    wanted = tuple(_requirement(entry, index) for index, entry in enumerate(facts.get("include") or ()))
    if not wanted:
        raise ValueError(
            f"GenEval needs the fact 'include' of each prompt, as in GenEval's evaluation_metadata.jsonl; these facts are {dict(facts)}"
        )
    return wanted, tuple(_requirement(entry, 0) for entry in facts.get("exclude") or ())


def judge(
    found: Mapping[str, Sequence[Detection]],
    facts: Mapping[str, Any],
    colours_of: Callable[[str, Sequence[Detection]], Sequence[str]],
) -> Verdict:
    """Judge the objects of one picture.

    The partial reward is the mean over the entries of ``include`` of: ``1 − |found − count| / count``; and where a colour or position is
    asked, the share of objects of that colour and 1 or 0 for the position, which are 0 while the number of objects is wrong (Flow-GRPO,
    arXiv:2505.05470, Sec. 4.1; its code grants the position's share even where it fails, which is not repeated). GenEval's test wants at
    least ``count`` of which the surest have the colour and position, and fewer than an ``exclude`` names.

    Args:
        found: Name to its detections, the surest first; see `kept`.
        facts: Of the prompt; see `requirements`.
        colours_of: Names the colour of each of some objects, given their name.

    Raises:
        ValueError: If the facts are not of GenEval's form.
    """
    wanted, forbidden = requirements(facts)
    matched: list[Sequence[Detection] | None] = []
    terms: list[float] = []
    reasons: list[str] = []
    for want in wanted:
        there = found.get(want.name, ())
        chosen, enough = there[: want.count], len(there) >= want.count
        checks = _checks(want, chosen, matched, colours_of) if enough else []
        told = [reason for _, reason in checks if reason] if enough else [f"{len(there)} {want.name}, {want.count} wanted"]
        matched.append(None if told else chosen)
        reasons += told
        terms.append(1 - abs(want.count - len(there)) / want.count)
        exact = len(there) == want.count
        terms += [share for share, _ in checks] if exact else [0.0] * sum(asked is not None for asked in (want.colour, want.position))
    for over in forbidden:
        if (count := len(found.get(over.name, ()))) >= over.count:
            reasons.append(f"{count} {over.name}, fewer than {over.count} wanted")
    return Verdict(score=sum(terms) / len(terms), correct=not reasons, reasons=tuple(reasons))


def kept(detections: Sequence[Detection], *, threshold: float, overlap: float) -> dict[str, list[Detection]]:
    """Sort detections by name, the surest first, without doubtful ones and without second boxes on one object.

    Args:
        detections: Of one picture.
        threshold: A score must be above it.
        overlap: Of two boxes of one name whose intersection over union is at least this, the surer stays; 1 keeps all.

    Returns:
        Name to at most 16 detections.
    """
    groups: dict[str, list[Detection]] = {}
    for one in sorted(detections, key=lambda detection: -detection.score):
        others = groups.setdefault(one.name, [])
        alone = overlap >= 1 or all(_intersection_over_union(one.box, other.box) < overlap for other in others)
        if one.score > threshold and len(others) < _MOST and alone:
            others.append(one)
    return {name: group for name, group in groups.items() if group}


def relations(one: Box, other: Box) -> set[str]:
    """Where one box is relative to another: any of `POSITIONS`, none if their centres nearly agree, two on a diagonal.

    The offset of the centres, shortened on each axis by a tenth of the two boxes' summed sizes, must make up more than half of the
    offset's length on that axis (GenEval's ``relative_position``).
    """
    sizes = ((one[2] - one[0], other[2] - other[0]), (one[3] - one[1], other[3] - other[1]))
    offset = [(one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) / 2 for axis in (0, 1)]
    shortened = [math.copysign(max(abs(d) - _MARGIN * sum(size), 0), d) for d, size in zip(offset, sizes, strict=True)]
    length = math.hypot(*offset)
    if not length:
        return set()
    x, y = (d / length for d in shortened)
    holds = {"left of": x < -_SLANT, "right of": x > _SLANT, "above": y < -_SLANT, "below": y > _SLANT}
    return {name for name, held in holds.items() if held}


def _requirement(entry: Any, index: int) -> Requirement:
    try:
        position, target = entry.get("position") or (None, 0)
        made = Requirement(
            name=str(entry["class"]), count=int(entry.get("count", 1)), colour=entry.get("color"), position=position, target=int(target)
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"an entry of include or exclude must read {{'class': 'bench', 'count': 2}}, got {entry!r} ({error!r})") from error
    if made.count < 1:
        raise ValueError(f"the count of {made.name!r} must be >= 1, got {made.count}")
    if made.colour not in {None, *COLOURS}:
        raise ValueError(f"the color of {made.name!r} must be one of {', '.join(COLOURS)}, got {made.colour!r}")
    if made.position not in {None, *POSITIONS} or (made.position and not 0 <= made.target < index):
        allowed = f"one of {', '.join(POSITIONS)} and the index of an earlier entry"
        raise ValueError(f"the position of {made.name!r} must be {allowed}, got {entry['position']}")
    return made


def _checks(
    want: Requirement,
    chosen: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    colours_of: Callable[[str, Sequence[Detection]], Sequence[str]],
) -> list[tuple[float, str]]:
    """Share and complaint of the colour and of the position that are asked for."""
    checks = []
    if want.colour:
        colours = list(colours_of(want.name, chosen))
        right = colours.count(want.colour)
        checks.append((right / want.count, "" if right == want.count else f"{want.name}: {', '.join(colours)}; {want.colour} wanted"))
    if want.position:
        wrong = any(reason for _, reason in checks)
        checks.append((0.0, "") if wrong else _position(want, chosen, matched[want.target]))
    return checks


def _position(want: Requirement, chosen: Sequence[Detection], targets: Sequence[Detection] | None) -> tuple[float, str]:
    if targets is None:
        return 0.0, f"nothing that {want.name} could be {want.position}"
    holds = all(want.position in relations(one.box, other.box) for one in chosen for other in targets)
    return (1.0, "") if holds else (0.0, f"{want.name} is not {want.position} {targets[0].name}")


def _intersection_over_union(one: Box, other: Box) -> float:
    overlap = _area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    union = _area(one) + _area(other) - overlap
    return overlap / union if union else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
