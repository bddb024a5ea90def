"""A line chart as places on a page, for an SVG that can be hovered over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDTH = 552
_HEIGHT, _LEGEND_LINE = 290, 17
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 116, 12, 40


@dataclass(frozen=True)
class Line:
    """Points joined by a line.

    Attributes:
        name: in the legend.
        x: in rising order.
        y: one a point.
        low: lower ends of the points' intervals.
        high: upper ends.
        hover: words of each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    hover: Sequence[str]


@dataclass(frozen=True)
class Tick:
    """A number on an axis: its place in pixels and its text."""

    place: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines over one axis, with bands for their intervals.

    Attributes:
        caption: above it.
        x_axis: what x is.
        y_axis: what y is.
        lines: at least one, with at least one point each.
        tags: what a reader may choose it by.
    """

    caption: str
    x_axis: str
    y_axis: str
    lines: Sequence[Line]
    tags: Mapping[str, str] = field(default_factory=dict)
    template = "chart"
    width = WIDTH

    def __post_init__(self) -> None:
        if not self.lines or not all(len(line.x) for line in self.lines):
            raise ValueError(f"a chart has lines of at least one point, got {[len(line.x) for line in self.lines]}")

    @property
    def height(self) -> int:
        """In pixels: as high as the legend needs."""
        return max(_HEIGHT, _TOP + _LEGEND_LINE * len(self.lines) + _BOTTOM)

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the plotted area, in pixels."""
        return _LEFT, _TOP, WIDTH - _RIGHT, self.height - _BOTTOM

    def x_ticks(self) -> list[Tick]:
        """Ticks of the x axis."""
        low, high = self._x_range()
        whole = all(x == int(x) for line in self.lines for x in line.x)  # there is no block 1.2
        ticks = [value for value in _round_numbers(low, high, 8) if not whole or value == round(value)]
        return [Tick(self._x(value), f"{value:g}") for value in ticks]

    def y_ticks(self) -> list[Tick]:
        """Ticks of the y axis."""
        low, high = self._y_range()
        return [Tick(self._y(value), f"{value:g}") for value in _round_numbers(low, high, 6)]

    def points(self, line: Line) -> list[tuple[float, float, str]]:
        """x and y in pixels, and hover words, of a line's points."""
        return [(self._x(x), self._y(y), words) for x, y, words in zip(line.x, line.y, line.hover, strict=True)]

    def path(self, line: Line) -> str:
        """Points of a line as SVG has them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.points(line))

    def band(self, line: Line) -> str:
        """Outline of a line's intervals as SVG has it."""
        upper = [(self._x(x), self._y(y)) for x, y in zip(line.x, line.high, strict=True)]
        lower = [(self._x(x), self._y(y)) for x, y in zip(line.x, line.low, strict=True)]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in upper + lower[::-1])

    def colour(self, number: int) -> str:
        """Of the line of this number: hues as far apart as their number allows."""
        return f"hsl({(210 + 360 * number / max(1, len(self.lines))) % 360:.0f} 70% 42%)"

    def _x_range(self) -> tuple[float, float]:
        values = [x for line in self.lines for x in line.x]
        return min(values), max(values)

    def _y_range(self) -> tuple[float, float]:
        return min(y for line in self.lines for y in line.low), max(y for line in self.lines for y in line.high)

    def _x(self, value: float) -> float:
        return _scaled(value, self._x_range(), _LEFT, WIDTH - _RIGHT)

    def _y(self, value: float) -> float:
        return _scaled(value, self._y_range(), self.height - _BOTTOM, _TOP)


def _scaled(value: float, limits: tuple[float, float], start: float, end: float) -> float:
    low, high = limits
    return (start + end) / 2 if high == low else start + (value - low) / (high - low) * (end - start)


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from low to high, at most so many; the one number where they are equal."""
    if low == high:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]
