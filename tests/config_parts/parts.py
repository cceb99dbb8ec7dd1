"""Components for the tests of flowrl.config; a fixture makes them importable as ``robot.parts``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from decimal import Decimal  # noqa: TC004  (the case under test)


class Engine(Protocol):
    """Not checkable at run time, on purpose."""

    power_w: float

    def start(self, key: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Motor:
    power_w: float

    def __post_init__(self) -> None:
        if not self.power_w > 0:
            raise ValueError(f"power_w must be > 0, got {self.power_w}")

    def start(self, key: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Wheel:
    radius_m: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Car:
    engine: Engine
    doors: int = 4
    wheels: Sequence[Wheel] = ()
    gears: tuple[float, ...] = ()
    size_m: tuple[float, float] = (4.0, 2.0)
    weights: Mapping[str, float] = field(default_factory=dict)
    colour: Literal["red", "blue"] = "red"
    radio: bool = False
    spare: Wheel | None = None
    manual: Path = Path("manual")
    price: Decimal | None = None
    hook: Callable[[int], int] | None = None
    notes: Sequence[str] = ()
    anything: Any = None


class Forwarder:
    """Has every attribute that it is asked for."""

    def __getattr__(self, name: str) -> object:
        return name


class Open:
    def __init__(self, size: int, **rest: object) -> None:
        self.size, self.rest = size, rest


def make_car() -> None: ...


_Hidden = Wheel
