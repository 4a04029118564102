"""Charts as inline SVG, drawn with the classes that the report's style sheet colours for light and dark screens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "bar_chart", "line_chart", "number", "size_chart", "stacked_chart"]

_WIDTH, _WIDE, _HEIGHT = 340.0, 1000.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 12.0, 34.0


@dataclass(frozen=True)
class Series:
    """Named values over the epochs; None where an epoch has none."""

    name: str
    values: Sequence[float | None]


def number(value: float) -> str:
    """Write a value with four significant digits, thousands separated."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    digits = 3 - math.floor(math.log10(abs(value)))
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits <= 6 else f"{value:.3g}"


class _Plot:
    """An SVG drawing with a frame of axes; x and y are data coordinates."""

    def __init__(self, label: str, x_range: tuple[float, float], y_range: tuple[float, float], width: float) -> None:
        self._x, self._y, self._width = x_range, y_range, width
        self._parts = [
            f'<svg class="chart" viewBox="0 0 {width:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}">'
        ]

    def x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / (high - low) * (self._width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def add(self, svg: str) -> None:
        self._parts.append(svg)

    def axes(self, x_ticks: Sequence[float], x_name: str, *, whole: bool = False) -> None:
        """Draw horizontal grid lines with their values, the ticks of the x axis, and its name.

        ``whole`` keeps to whole values, for what is counted.
        """
        right = self._width - _RIGHT
        for tick in _ticks(*self._y):
            if whole and not float(tick).is_integer():
                continue
            y = self.y(tick)
            self.add(f'<line class="grid" x1="{_LEFT:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.text(_LEFT - 6, y + 3.5, number(tick), "end")
        for tick in x_ticks:
            self.text(self.x(tick), _HEIGHT - _BOTTOM + 14, number(tick), "middle")
        self.text((_LEFT + right) / 2, _HEIGHT - 4, x_name, "middle")

    def text(self, x: float, y: float, text: str, anchor: str, css: str = "tick") -> None:
        self.add(f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def bar(self, left: float, right: float, low: float, high: float, css: str, title: str) -> None:
        """Draw a bar between two x positions (in pixels) and two values."""
        top, bottom = self.y(high), self.y(low)
        self.add(
            f'<rect class="{css}" x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" '
            f'height="{max(0.0, bottom - top):.2f}"><title>{escape(title)}</title></rect>'
        )

    def close(self) -> str:
        return "".join(self._parts) + "</svg>"


def line_chart(label: str, series: Sequence[Series], first_epoch: int = 1) -> str:
    """Draw lines over the epochs, a dot per epoch that has a value; the y range fits the values."""
    values = [value for line in series for value in line.values if value is not None]
    n_epochs = max(len(line.values) for line in series)
    last = first_epoch + n_epochs - 1
    plot = _Plot(label, _span(first_epoch, last), _padded(min(values), max(values)), _WIDTH)
    plot.axes(_epoch_ticks(first_epoch, last), "epoch", whole=all(isinstance(value, int) for value in values))
    for index, line in enumerate(series):
        points = [(first_epoch + i, value) for i, value in enumerate(line.values) if value is not None]
        path = " ".join(f"{plot.x(epoch):.1f},{plot.y(value):.1f}" for epoch, value in points)
        plot.add(f'<polyline class="line s{index}" points="{path}"/>')
        radius = 2.6 if len(points) <= 60 else 1.4
        for epoch, value in points:
            title = f"{line.name}, epoch {epoch}: {number(value)}"
            plot.add(
                f'<circle class="dot s{index}" cx="{plot.x(epoch):.1f}" cy="{plot.y(value):.1f}" r="{radius}">'
                f"<title>{escape(title)}</title></circle>"
            )
    return plot.close()


def stacked_chart(label: str, series: Sequence[Series], unit: str) -> str:
    """Draw one bar per epoch, the series on top of one another."""
    columns = list(zip(*(line.values for line in series), strict=True))
    totals = [math.fsum(value or 0.0 for value in column) for column in columns]
    plot = _Plot(label, (0.5, len(columns) + 0.5), (0.0, 1.05 * max(totals) or 1.0), _WIDTH)
    plot.axes(_epoch_ticks(1, len(columns)), "epoch")
    half = min(0.4, 12 / (plot.x(1) - plot.x(0)))
    for epoch, column in enumerate(columns, start=1):
        base = 0.0
        for index, (line, value) in enumerate(zip(series, column, strict=True)):
            top = base + (value or 0.0)
            title = f"{line.name}, epoch {epoch}: {number(value or 0.0)} {unit}"
            plot.bar(plot.x(epoch - half), plot.x(epoch + half), base, top, f"fill s{index}", title)
            base = top
    return plot.close()


def size_chart(label: str, sizes: Sequence[int], n_empty: int, columns: int = 900) -> str:
    """Draw the cluster sizes, largest first, the empty ones as a shaded stretch at the end.

    Parameters
    ----------
    label : str
        What the drawing shows, for those who cannot see it.
    sizes : sequence of int
        Of the clusters that are not empty.
    n_empty : int
        How many more are empty.
    columns : int
        Bars at most; above, each bar shows one of its neighbouring clusters, the largest cluster in any case.
    """
    ordered = sorted(sizes, reverse=True)
    total = len(ordered) + n_empty
    mean = sum(ordered) / total
    plot = _Plot(label, (0.0, float(total)), (0.0, 1.15 * ordered[0]), _WIDE)
    plot.axes([tick for tick in _ticks(0, total) if tick <= total and float(tick).is_integer()], "clusters, by size")
    step = max(1, math.ceil(len(ordered) / columns))
    gap = 0.12 if len(ordered) < 200 else 0.0
    for rank in range(0, len(ordered), step):
        end = min(rank + step, len(ordered))
        css = "fill s1" if rank == 0 else "fill s0"
        title = f"{number(ordered[rank])} images"
        plot.bar(plot.x(rank + gap * step), plot.x(end - gap * step), 0.0, ordered[rank], css, title)
    plot.text(_LEFT + 2, plot.y(ordered[0]) - 5, f"largest: {number(ordered[0])} images", "start", "mark s1")
    if n_empty:
        plot.bar(plot.x(len(ordered)), plot.x(total), 0.0, 1.15 * ordered[0], "empty", f"{n_empty} empty clusters")
        plot.text(plot.x(total) - 4, plot.y(1.15 * ordered[0]) + 12, f"{number(n_empty)} empty", "end", "mark s3")
    y = plot.y(mean)
    plot.add(f'<line class="mean" x1="{_LEFT:g}" x2="{_WIDE - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
    plot.text(_WIDE - _RIGHT - 4, y - 5, f"mean {number(mean)}", "end")
    return plot.close()


def bar_chart(label: str, groups: Sequence[str], series: Sequence[Series], level: float, x_name: str) -> str:
    """Draw shares between 0 and 1 as grouped bars in per cent, with a dashed line at a level of reference."""
    plot = _Plot(label, (0.0, float(len(groups))), (0.0, 100.0), _WIDE)
    plot.axes([], x_name)
    width = 0.7 / len(series)
    for place, group in enumerate(groups):
        plot.text(plot.x(place + 0.5), _HEIGHT - _BOTTOM + 14, group, "middle")
        for index, line in enumerate(series):
            value = 100 * (line.values[place] or 0.0)
            left, right = plot.x(place + 0.15 + index * width), plot.x(place + 0.15 + (index + 0.94) * width)
            plot.bar(left, right, 0.0, value, f"fill s{index}", f"{group}, {line.name}: {value:.1f}%")
            plot.text((left + right) / 2, plot.y(value) - 3, f"{value:.1f}", "middle")
    y = plot.y(100 * level)
    plot.add(f'<line class="mean" x1="{_LEFT:g}" x2="{_WIDE - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return plot.close()


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Choose round values between ``low`` and ``high``, 1, 2, 2.5 or 5 times a power of ten apart."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _epoch_ticks(first: int, last: int) -> list[float]:
    if last - first < 8:
        return [float(epoch) for epoch in range(first, last + 1)]
    return [tick for tick in _ticks(first, last, 6) if float(tick).is_integer()]


def _span(first: int, last: int) -> tuple[float, float]:
    return (first, last) if last > first else (first - 0.5, first + 0.5)


def _padded(low: float, high: float) -> tuple[float, float]:
    """Widen a range so that its lines keep clear of the frame; zero stays the floor of what is never negative."""
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return (max(0.0, low - room) if low >= 0 else low - room), high + room
