"""Charts as inline SVG: their colours are the page's, so that they follow light, dark and print."""

from __future__ import annotations

import math
from html import escape

from laplora.report.charts import Axis, Bar, Chart, Dot, Line, Mark, Whisker

_WIDTH = 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 28, 12, 44


def svg(chart: Chart, number: int) -> str:
    """Return a chart as an SVG element; ``number`` is its own on its page, for the id of what it says in words."""
    frame = _Frame(chart)
    label = f'role="img" aria-labelledby="chart-{number}"'
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {chart.height}" {label}>',
        f'<title id="chart-{number}">{escape(chart.description)}</title>',
        *frame.axes(),
        *(frame.mark(mark) for mark in chart.marks),
        "</svg>",
    ]
    return "".join(parts)


class _Frame:
    """The positions of a chart's values, in the picture's units from its top left corner."""

    def __init__(self, chart: Chart) -> None:
        self._chart = chart
        self._bottom = chart.height - _BOTTOM

    def _x(self, value: float) -> float:
        axis = self._chart.x
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * _part(axis, value)

    def _y(self, value: float) -> float:
        return self._bottom - (self._bottom - _TOP) * _part(self._chart.y, value)

    def axes(self) -> list[str]:
        """Return grid lines, ticks with their numbers, and the axes' titles."""
        x, y = self._chart.x, self._chart.y
        parts = []
        for value in ticks(y, 5 if self._chart.height > 150 else 2):
            at = self._y(value)
            parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
            parts.append(f'<text class="end" x="{_LEFT - 6}" y="{at + 4:.1f}">{_shown(y, value)}</text>')
        for value in ticks(x, 6):
            at = self._x(value)
            parts.append(f'<path class="axis" d="M{at:.1f} {self._bottom}v4"/>')
            parts.append(f'<text class="middle" x="{at:.1f}" y="{self._bottom + 17}">{_shown(x, value)}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {self._bottom}H{_WIDTH - _RIGHT}"/>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text class="middle name" x="{middle:g}" y="{self._chart.height - 8}">{escape(x.title)}</text>')
        up = (self._bottom + _TOP) / 2
        turned = f'transform="translate(14 {up:g}) rotate(-90)"'
        parts.append(f'<text class="middle name" {turned}>{escape(y.title)}</text>')
        return parts

    def mark(self, mark: Mark) -> str:
        """Return one mark; what it says when it is pointed at is its title."""
        if isinstance(mark, Line):
            points = "L".join(f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in mark.points)
            return f'<path class="line {mark.style}" d="M{points}"/>'
        title = f"<title>{escape(mark.title)}</title>" if mark.title else ""
        if isinstance(mark, Bar):
            left, right, top = self._x(mark.left), self._x(mark.right), self._y(mark.top)
            height = self._y(mark.bottom) - top
            place = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{height:.1f}"'
            return f'<rect class="bar {mark.style}" {place}>{title}</rect>'
        if isinstance(mark, Whisker):
            x, low, high = self._x(mark.x), self._y(mark.low), self._y(mark.high)
            path = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
            return f'<path class="line thin {mark.style}" d="{path}">{title}</path>'
        assert isinstance(mark, Dot)
        place = f'cx="{self._x(mark.x):.1f}" cy="{self._y(mark.y):.1f}"'
        return f'<circle class="dot {mark.style}" {place} r="5">{title}</circle>'


def _part(axis: Axis, value: float) -> float:
    """Return where a value lies on an axis, 0 to 1; outside it, at its end."""
    return min(1.0, max(0.0, (value - axis.low) / (axis.high - axis.low)))


def ticks(axis: Axis, about: int) -> list[float]:
    """Return round values on an axis, roughly as many as asked for: multiples of 1, 2 or 5 times a power of ten."""
    span = axis.high - axis.low
    power: float = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _shown(axis: Axis, value: float) -> str:
    if axis.percent:
        return f"{round(100 * value, 4):g} %"
    return f"{value:.0e}".replace("e-0", "e-") if 0 < abs(value) < 1e-3 else f"{round(value, 10):g}"
