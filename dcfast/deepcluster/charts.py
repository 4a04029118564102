"""Charts as inline SVG, drawn by matplotlib and coloured by the report's style sheet."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dcfast.deepcluster.page import number

__all__ = ["bar_chart", "line_chart", "scatter_chart", "size_chart", "stacked_chart"]

# matplotlib needs literal colours, the page has light and dark ones: each stands for a value of CSS until it is drawn.
_CSS = {"#00000f": "currentColor", **{f"#{index:06x}": f"var(--s{index - 1})" for index in range(1, 5)}}
_INK, *_SERIES = _CSS
_LARGEST, _EMPTY = _SERIES[1], _SERIES[3]

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "savefig.transparent": True,
    "figure.constrained_layout.use": True,
    "font.size": 10.5,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so the layout is the same everywhere
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.alpha": 0.2,
    "xtick.major.pad": 6,
    "legend.frameon": False,
    "legend.handlelength": 0.8,
    **dict.fromkeys(("axes.spines.left", "axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size", "legend.borderaxespad"), 0),
    **dict.fromkeys(
        ("axes.edgecolor", "axes.labelcolor", "grid.color", "text.color", "xtick.color", "ytick.color"), _INK
    ),
}
_NARROW, _WIDE = (350, 205), (1040, 230)


def line_chart(label: str, values: Sequence[float | None]) -> str:
    """Draw values over the epochs from 1, None where an epoch has none, and write the last one at its end.

    Parameters
    ----------
    label : str
        What the chart shows, for those who cannot see it; different for each chart of a page, as it makes the ids.
    values : sequence of float or None
        At least one value. Ticks are whole where all values are int.

    Returns
    -------
    str
        An ``svg`` element that refers to nothing outside itself but to the variables of the page's style.
    """
    points = [(epoch, value) for epoch, value in enumerate(values, start=1) if value is not None]

    def draw(axes: Axes) -> None:
        marker = "o" if len(points) <= 60 else ""
        axes.plot(*zip(*points, strict=True), color=_SERIES[0], lw=2, marker=marker, ms=4, clip_on=False)
        if min(value for _, value in points) >= 0:
            axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))  # no ticks below the floor
        whole = all(isinstance(value, int) for _, value in points)
        _ticks(axes.yaxis, 5, whole)
        _epochs(axes)
        _note(axes, number(points[-1][1]), points[-1], (6, 0), ha="left", va="center", color=_SERIES[0], weight="bold")

    return _svg(label, _NARROW, draw)


def stacked_chart(label: str, series: Mapping[str, Sequence[float]]) -> str:
    """Draw named values over the epochs from 1, the series on top of one another. Returns as `line_chart` does."""
    tops = np.cumsum(list(series.values()), axis=0)

    def draw(axes: Axes) -> None:
        edges = np.arange(tops.shape[1] + 1) + 0.5
        for name, color, low, high in zip(series, _SERIES, [np.zeros_like(tops[0]), *tops[:-1]], tops, strict=False):
            axes.stairs(high, edges, baseline=low, fill=True, color=color, label=name)
        axes.set(xlim=edges[[0, -1]], ylim=(0, None))
        _ticks(axes.yaxis, 5, whole=False)
        _epochs(axes)

    return _svg(label, _NARROW, draw)


def size_chart(label: str, sizes: Sequence[int], n_empty: int) -> str:
    """Draw the sizes of the clusters that hold images, largest first, and the empty ones as a shaded stretch.

    Returns as `line_chart` does. Clusters of the same size make one step of the outline, so n images, however many
    clusters they are in, make at most sqrt(2 n) steps.
    """
    levels, counts = (found[::-1] for found in np.unique(sizes, return_counts=True))
    edges = np.concatenate([[0], counts.cumsum()])
    n_used, total = int(edges[-1]), int(edges[-1]) + n_empty

    def draw(axes: Axes) -> None:
        axes.stairs(levels, edges, fill=True, color=_SERIES[0])
        axes.stairs(levels[:1], [0, 1], fill=True, color=_LARGEST)
        axes.set(xlim=(0, total), ylim=(0, 1.15 * levels[0]), xlabel="clusters, by size")
        _ticks(axes.xaxis, 10, whole=True)
        _ticks(axes.yaxis, 5, whole=True)
        _note(axes, f"largest: {number(int(levels[0]))} images", (0, levels[0]), (2, 3), color=_LARGEST, weight="bold")
        if n_empty:
            axes.axvspan(n_used, total, color=_EMPTY, alpha=0.15, lw=0)
            top = (total, 1.15 * levels[0])
            _note(axes, f"{number(n_empty)} empty", top, (-4, -4), ha="right", va="top", color=_EMPTY, weight="bold")
        mean = float(np.sum(sizes)) / total
        axes.axhline(mean, color=_INK, lw=1, ls="--")
        _note(axes, f"mean {number(mean)}", (total, mean), (-4, 3), ha="right")

    return _svg(label, _WIDE, draw)


def bar_chart(
    label: str, groups: Sequence[str], series: Mapping[str, Sequence[float]], level: float, x_name: str
) -> str:
    """Draw shares between 0 and 1 as grouped bars in per cent, with a dashed line at a level of reference.

    Returns as `line_chart` does.
    """

    def draw(axes: Axes) -> None:
        width = 0.7 / len(series)
        for index, (name, shares) in enumerate(series.items()):
            places = np.arange(len(groups)) + (index - (len(series) - 1) / 2) * width
            bars = axes.bar(places, 100 * np.asarray(shares), 0.94 * width, color=_SERIES[index], label=name)
            axes.bar_label(bars, fmt="%.1f", padding=2)
        axes.axhline(100 * level, color=_INK, lw=1, ls="--")
        axes.set(ylim=(0, 105), yticks=range(0, 101, 20), xlabel=x_name)
        axes.set_xticks(range(len(groups)), groups)

    return _svg(label, _WIDE, draw)


def scatter_chart(label: str, values: Mapping[int, Sequence[float]], chance: Mapping[int, float], x_name: str) -> str:
    """Draw several values at each place of a logarithmic axis, their means, and what chance gives where it is known.

    Returns as `line_chart` does.
    """

    def draw(axes: Axes) -> None:
        places = sorted(values)
        for place in places:
            axes.plot([place] * len(values[place]), values[place], "o", color=_SERIES[0], ms=4, clip_on=False)
        axes.plot(places, [np.mean(values[place]) for place in places], color=_SERIES[0], lw=2, label="mean")
        if chance:
            axes.plot(places, [chance[place] for place in places], color=_INK, lw=1, ls="--", label="by chance")
        axes.set(xscale="log", xlabel=x_name)
        axes.minorticks_off()
        axes.set_xticks(places, [number(place) for place in places])
        _ticks(axes.yaxis, 5, whole=False)

    return _svg(label, _NARROW, draw)


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    _ticks(axes.xaxis, 7, whole=True)


def _ticks(axis: Axis, about: int, whole: bool) -> None:
    axis.set_major_locator(MaxNLocator(about, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1))
    if whole:
        axis.set_major_formatter("{x:,.0f}")


def _note(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """Write a text beside a point, ``offset`` away in units of the drawing."""
    axes.annotate(text, at, offset, textcoords="offset points", annotation_clip=False, **look)


def _svg(label: str, size: tuple[int, int], draw: Callable[[Axes], None]) -> str:
    """Return what ``draw`` draws, ``size`` pixels large, as an element for a page of several such elements.

    The same bytes for the same label and drawing, whatever the user's settings of matplotlib are.
    """
    written = io.StringIO()
    with style.context({**_STYLE, "svg.hashsalt": label}, after_reset=True):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        axes = figure.add_subplot()
        draw(axes)
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside upper left", ncols=len(_SERIES))
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = written.getvalue()
    svg = svg[svg.index("<svg ") :]  # what precedes it, an HTML page has once
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # would hold for the whole page
    # The ids of groups repeat from chart to chart and nothing refers to them; those of definitions hash the label.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub("|".join(_CSS), lambda color: _CSS[color[0]], svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).strip()
    return svg.replace("<svg ", f'<svg class="chart" role="img" aria-label="{escape(label)}" ', 1)
