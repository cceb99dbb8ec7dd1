"""Line and bar charts as inline SVG: no script, no font, colours from the page's CSS variables (so they follow light and dark)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape

from flowrl.train.figures import SMALL, figure

WIDTH, HEIGHT = 480, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40
MOST_POINTS = 400  # a line is thinned to so many points; the figures behind it stay in metrics.jsonl
SMOOTH_FROM = 24  # points; shorter lines are drawn as they are


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve.

    Attributes:
        name: Shown in the legend and the hover text.
        x: Positions, ascending.
        y: Values, finite.
        ci95: Half-widths of a band around ``y``; empty for none.
        band: Its lower and upper edge at every point instead, where it does not lie evenly around ``y``.
        markers: Whether to mark every point; for curves of a few measurements.
        smooth: Whether a long curve is drawn faint under its moving mean.
        colour: Number of the page's colour.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    ci95: Sequence[float] = ()
    band: Sequence[tuple[float, float]] = ()
    markers: bool = False
    smooth: bool = True
    colour: int = 0

    @property
    def edges(self) -> list[tuple[float, float]]:
        """Lower and upper edge at every point; ``y`` itself where there is no band."""
        bands = self.ci95 or [0.0] * len(self.y)
        return list(self.band) or [(y - half, y + half) for y, half in zip(self.y, bands, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear or logarithmic scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 2)


def line_chart(lines: Sequence[Line], *, x_label: str, log: bool = False) -> str:
    """Draw curves over one horizontal axis.

    Args:
        lines: Curves; empty ones are left out.
        x_label: Written below the axis.
        log: Whether the vertical axis is logarithmic; values <= 0 are then left out.

    Returns:
        An ``<svg>`` element, or a short note in a ``<p>`` if there is nothing to draw.
    """
    lines = [kept for line in lines if (kept := _drawable(line, log)).x]
    if not lines:
        return '<p class="empty">nothing recorded</p>'
    x_axis = _axis([x for line in lines for x in line.x], LEFT, WIDTH - RIGHT, whole=True)
    y_axis = _axis([edge for line in lines for edge in _extent(line)], HEIGHT - BOTTOM, TOP, log=log)
    parts = [_frame(x_axis, y_axis, x_label)]
    parts += [_curve(line, x_axis, y_axis) for line in lines]
    parts.append(_hover(lines, x_axis))
    names = {line.name: line.colour for line in lines}
    return _svg(parts, f"{', '.join(names)} against {x_label}") + _legend(names)


def bar_chart(groups: Mapping[str, Sequence[float]], labels: Sequence[str], *, x_label: str) -> str:
    """Draw bars in groups, one colour per group member.

    Args:
        groups: Name of a series -> one value >= 0 per label.
        labels: Names under the bars.
        x_label: Written below the axis.
    """
    values = [value for series in groups.values() for value in series]
    if not values:
        return '<p class="empty">nothing recorded</p>'
    y_axis = _axis([0.0, *values], HEIGHT - BOTTOM, TOP)
    slot = (WIDTH - LEFT - RIGHT) / len(labels)
    width = min(26.0, 0.7 * slot / len(groups))
    parts = [_frame(None, y_axis, x_label)]
    for place, label in enumerate(labels):
        centre = LEFT + (place + 0.5) * slot
        parts.append(f'<text class="tick" x="{centre:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(label)}</text>')
        for index, (name, series) in enumerate(groups.items()):
            left, top = centre + (index - len(groups) / 2) * width, y_axis(series[place])
            size = f'width="{width - 1.5:.2f}" height="{HEIGHT - BOTTOM - top:.2f}"'
            parts.append(
                f'<rect class="bar c{index}" x="{left:.2f}" y="{top}" {size} rx="1.5">'
                f"<title>{escape(name)}, {escape(label)}: {figure(series[place])}</title></rect>"
            )
    return _svg(parts, f"{', '.join(groups)} by {x_label}") + _legend({name: index for index, name in enumerate(groups)})


def smoothed(values: Sequence[float]) -> tuple[list[float], int]:
    """Return the centred moving mean over a tenth of the curve, and that window's length (odd, in points)."""
    half = len(values) // 20
    return [sum(window) / len(window) for i in range(len(values)) if (window := values[max(0, i - half) : i + half + 1])], 2 * half + 1


def _drawable(line: Line, log: bool) -> Line:  # noqa: FBT001
    stride = -(-len(line.x) // MOST_POINTS) or 1
    last = len(line.x) - 1
    points = [
        (x, y, edges)
        for i, (x, y, edges) in enumerate(zip(line.x, line.y, line.edges, strict=True))
        if (i % stride == 0 or i == last) and math.isfinite(y) and (y > 0 or not log)
    ]
    x, y, edges = zip(*points, strict=True) if points else ((), (), ())
    return replace(line, x=x, y=y, ci95=(), band=edges if line.ci95 or line.band else ())


def _extent(line: Line) -> list[float]:
    return [edge for edges in line.edges for edge in edges]


def _axis(values: Sequence[float], start: float, end: float, *, log: bool = False, whole: bool = False) -> Axis:
    low, high = min(values), max(values)
    if log:
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high) + 1e-9)
        decades = range(round(math.log10(low)), round(math.log10(high)) + 1)
        return Axis(low=low, high=high, start=start, end=end, log=True, ticks=[10.0**d for d in decades][:: -(-len(decades) // 6)])
    if low == high:
        low, high = (low - 0.5, high + 0.5) if whole else (min(0.0, 1.25 * low), max(0.0, 1.25 * high) or float(low == 0))
    step = _nice_step((high - low) / 5)
    step = max(step, 1.0) if whole else step
    if not whole:  # the curve fills the chart between two ticks
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    ticks = [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return Axis(low=low, high=high, start=start, end=end, ticks=ticks)


def _nice_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= raw * (1 - 1e-9))


def _short(value: float) -> str:
    """A tick label: 1500000 -> 1.5M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g}{letter}".replace("-", "−")
    return figure(value) if value and abs(value) < SMALL else f"{value:.6g}".replace("-", "−")


def _frame(x_axis: Axis | None, y_axis: Axis, x_label: str) -> str:
    base = HEIGHT - BOTTOM
    rows = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_axis(tick)}" y2="{y_axis(tick)}"/>'
        f'<text class="tick" x="{LEFT - 7}" y="{y_axis(tick) + 3.5:.2f}" text-anchor="end">{_short(tick)}</text>'
        for tick in y_axis.ticks
    ]
    columns = []
    if x_axis:
        columns = [f'<text class="tick" x="{x_axis(v)}" y="{base + 16}" text-anchor="middle">{_short(v)}</text>' for v in x_axis.ticks]
    axis = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'
    label = f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>'
    return "".join([*rows, *columns, axis, label])


def _curve(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    smooth = line.smooth and len(line.x) >= SMOOTH_FROM and not line.markers
    drawn = ""
    if line.band:
        bands = list(zip(line.x, line.band, strict=True))
        upper = [(x, high) for x, (_, high) in bands]
        lower = [(x, low) for x, (low, _) in reversed(bands)]
        drawn += f'<polygon class="band c{line.colour}" points="{_points(upper + lower, x_axis, y_axis)}"/>'
    points = list(zip(line.x, line.y, strict=True))
    drawn += f'<polyline class="line c{line.colour}{" raw" if smooth else ""}" points="{_points(points, x_axis, y_axis)}"/>'
    if smooth:
        means = zip(line.x, smoothed(line.y)[0], strict=True)
        drawn += f'<polyline class="line c{line.colour}" points="{_points(means, x_axis, y_axis)}"/>'
    if line.markers or len(points) == 1:
        drawn += "".join(f'<circle class="dot c{line.colour}" cx="{x_axis(x)}" cy="{y_axis(y)}" r="3"/>' for x, y in points)
    return drawn


def _points(points: Iterable[tuple[float, float]], x_axis: Axis, y_axis: Axis) -> str:
    return " ".join(f"{x_axis(x)},{y_axis(y)}" for x, y in points)


def _hover(lines: Sequence[Line], x_axis: Axis) -> str:
    """One invisible column per position; its title is the browser's own tooltip."""
    texts: dict[float, list[str]] = {}
    for line in lines:
        bands = [_spread(y, low, high) for y, (low, high) in zip(line.y, line.band, strict=bool(line.band))] or [""] * len(line.x)
        for x, y, band in zip(line.x, line.y, bands, strict=True):
            texts.setdefault(x, []).append(f"{line.name} {figure(y)}{band}")
    pixels: Callable[[float], float] = x_axis
    places = sorted(texts)
    half = (WIDTH - LEFT - RIGHT) / max(1, len(places) - 1) / 2
    return "".join(
        f'<rect class="hit" x="{pixels(x) - half:.2f}" y="{TOP}" width="{2 * half:.2f}" height="{HEIGHT - TOP - BOTTOM}">'
        f"<title>{figure(x)}: {escape(', '.join(texts[x]))}</title></rect>"
        for x in places
    )


def _spread(y: float, low: float, high: float) -> str:
    """`` ± 0.1``, or both edges where they do not lie evenly around ``y``."""
    even = math.isclose(y - low, high - y, rel_tol=1e-9)
    return f" ± {figure(y - low)}" if even else f" ({figure(low)} to {figure(high)})"


def _legend(colours: dict[str, int]) -> str:
    if len(colours) <= 1:
        return ""
    keys = "".join(f'<span><i class="key c{colour}"></i>{escape(name)}</span>' for name, colour in colours.items())
    return f'<div class="legend">{keys}</div>'


def _svg(parts: Sequence[str], description: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">{"".join(parts)}</svg>'
