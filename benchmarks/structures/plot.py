"""The plot of the comparison of structures: agreement with the exact posterior against size, per task."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.structures.table import CORRELATION_BAND, PLOT, RATIO_BAND, variants_of
from training.report.pictures import save_picture

_BAND = "#d9ecd9"
_COLORS = (
    *("#000000", "#7f7f7f", "#2a6fb0", "#e07b00", "#2e8b57", "#8172b3"),
    *("#b8860b", "#c2187a", "#00a0b0", "#6b4226", "#4c4cff", "#7ab800"),
)
_MARKERS = "osD^vPh*<>pd"
#: Correlations are drawn by the digits that they lack to 1, up to this much of it.
_CLOSEST = 3e-4
_TICKS = (-1.0, -0.5, 0.0, 0.5, 0.9, 0.99, 0.999, 1.0)
#: Ratios beyond these stand at the edge.
_RATIOS = (0.01, 100.0)


def write_approximation_plot(records: pd.DataFrame, folder: Path) -> Path:
    """Write the plot and return its path."""
    return save_picture(approximation_figure(records), folder / PLOT, colors=128)


def approximation_figure(records: pd.DataFrame) -> Figure:
    """Return a row of two panels per task: correlation of the log variances, and their ratio, against size.

    A point is a variant with its rank (of two, the last is the joint rank), a line joins the ranks of one structure.
    """
    by_task = {task: variants_of(records, task) for task in sorted(set(records.task))}
    late = pd.concat(by_task.values()).groupby("series", sort=False).late.first()
    style = {s: (_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]) for i, s in enumerate(late[~late].index)}
    style |= {s: ("#d00000", "xX+1"[i % 4]) for i, s in enumerate(late[late].index)}
    figure = Figure(figsize=(11, 3.7 * len(by_task) + 1.5), layout="constrained")
    figure.suptitle("Predictive variances against the exact GGN posterior's", fontsize=12, fontweight="bold")
    grid = figure.subplots(len(by_task), 2, squeeze=False)
    for (left, right), (task, variants) in zip(grid, by_task.items(), strict=True):
        _draw_correlations(left, variants, style)
        _draw_ratios(right, variants, style)
        left.set_title(f"{task}: correlation of log variances", fontsize=10)
        right.set_title(f"{task}: median ratio to the exact variance", fontsize=10)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("size / adapter's size", fontsize=9)
            axes.margins(x=0.08)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", markersize=6, label="⚠ " * bool(late[s]) + s)
        for s, (color, marker) in style.items()
    ]
    band = Line2D([], [], color=_BAND, linewidth=8, label="target band")
    figure.legend(handles=[*handles, band], loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _draw_correlations(axes: Axes, variants: pd.DataFrame, style: dict[str, tuple[str, str]]) -> None:
    axes.axhspan(_spread(CORRELATION_BAND[0]), _spread(CORRELATION_BAND[1]), color=_BAND, zorder=0)
    axes.set_yticks([_spread(t) for t in _TICKS], [f"{t:g}" for t in _TICKS])
    axes.set_ylim(_spread(max(-1.0, min(0.5, variants.correlation.min()) - 0.2)), _spread(1.0) + 0.35)
    heights = variants.correlation.map(_spread)
    _draw(axes, variants.assign(shown=heights, height=heights), style)


def _draw_ratios(axes: Axes, variants: pd.DataFrame, style: dict[str, tuple[str, str]]) -> None:
    axes.axhspan(*RATIO_BAND, color=_BAND, zorder=0)
    axes.axhline(1, color="black", linewidth=0.8, zorder=1)
    shown = variants.ratio.clip(*_RATIOS)
    axes.set_yscale("log")
    axes.set_ylim(0.75 * min(0.5, shown.min()), 1.5 * max(2.0, shown.max()))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _draw(axes, variants.assign(shown=shown, height=shown.map(math.log10)), style)


def _draw(axes: Axes, points: pd.DataFrame, style: dict[str, tuple[str, str]]) -> None:
    """Draw the points at ``shown``; ranks of one structure are joined, and written beside them.

    A rank stands above its point where the nearest point of another structure and like size lies below.
    """
    for series, (color, marker) in style.items():
        ranks, others = points[points.series == series], points[points.series != series]
        axes.plot(ranks["size"], ranks.shown, color=color, marker=marker, markersize=5.5, linewidth=1, zorder=3)
        for point in ranks.itertuples():
            near = (
                others[(others["size"] / point.size).between(2 / 3, 3 / 2, inclusive="neither")].height - point.height
            )
            above = near.empty or near.loc[near.abs().idxmin()] <= 0
            axes.annotate(
                "/".join(rank for rank in point.ranks if rank != "-"),
                (point.size, point.shown),
                xytext=(0, 5) if above else (0, -11),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
                color=color,
                path_effects=[withStroke(linewidth=1.8, foreground="white")],
            )


def _spread(correlation: float) -> float:
    """Return a height at which 0.9, 0.99 and 0.999 are equally far apart."""
    return -math.log10(1 - min(correlation, 1.0) + _CLOSEST)
