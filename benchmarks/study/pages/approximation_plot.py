"""The plot of the comparison of structures: agreement with the exact posterior against size, per task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.study.pages.approximation_table import CORRELATION_BAND, PLOT, RATIO_BAND, Variant, variants_of
from benchmarks.study.pages.plots import save_picture
from benchmarks.study.results.approximation_records import VariantRecord

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


def write_approximation_plot(records: Sequence[VariantRecord], folder: Path) -> list[Path]:
    """Write the plot and return its path; none where nothing is published."""
    if not records:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    return [save_picture(approximation_figure(records), folder / PLOT, colors=128)]


def approximation_figure(records: Sequence[VariantRecord]) -> Figure:
    """Return a row of two panels per task: correlation of the log variances, and their ratio, against size.

    A point is a variant, a line joins the ranks of one structure, the number at a point is its rank (of two, the
    last is the joint rank); shaded are the target bands.
    """
    tasks = sorted({r.task for r in records})
    by_task = {task: variants_of(records, task) for task in tasks}
    series = list(dict.fromkeys(v.series for variants in by_task.values() for v in variants if not v.late))
    late = list(dict.fromkeys(v.series for variants in by_task.values() for v in variants if v.late))
    style = {s: (_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]) for i, s in enumerate(series)}
    style |= {s: ("#d00000", "xX+1"[i % 4]) for i, s in enumerate(late)}
    figure = Figure(figsize=(11, 3.7 * len(tasks) + 1.5), layout="constrained")
    figure.suptitle("Predictive variances against the exact GGN posterior's", fontsize=12, fontweight="bold")
    grid = figure.subplots(len(tasks), 2, squeeze=False)
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
        Line2D([], [], color=color, marker=marker, linestyle="", markersize=6, label=f"⚠ {s}" if s in late else s)
        for s, (color, marker) in style.items()
    ]
    band = Line2D([], [], color=_BAND, linewidth=8, label="target band")
    figure.legend(handles=[*handles, band], loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _draw_correlations(axes: Axes, variants: Sequence[Variant], style: dict[str, tuple[str, str]]) -> None:
    found = [(v, v.correlation) for v in variants if v.correlation is not None]
    axes.axhspan(_spread(CORRELATION_BAND[0]), _spread(CORRELATION_BAND[1]), color=_BAND, zorder=0)
    lowest = min([0.5, *(r for _, r in found)])
    axes.set_yticks([_spread(t) for t in _TICKS], [f"{t:g}" for t in _TICKS])
    axes.set_ylim(_spread(max(-1.0, lowest - 0.2)), _spread(1.0) + 0.35)
    _draw(axes, [(v, _spread(r)) for v, r in found], style, log=False)


def _draw_ratios(axes: Axes, variants: Sequence[Variant], style: dict[str, tuple[str, str]]) -> None:
    axes.axhspan(*RATIO_BAND, color=_BAND, zorder=0)
    axes.axhline(1, color="black", linewidth=0.8, zorder=1)
    shown = [(v, min(max(v.ratio, _RATIOS[0]), _RATIOS[1])) for v in variants]
    axes.set_yscale("log")
    axes.set_ylim(0.75 * min([0.5, *(r for _, r in shown)]), 1.5 * max([2.0, *(r for _, r in shown)]))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _draw(axes, shown, style, log=True)


def _draw(axes: Axes, points: Sequence[tuple[Variant, float]], style: dict[str, tuple[str, str]], log: bool) -> None:
    """Draw the points at the given heights; ranks of one structure are joined, and written beside them."""
    heights = [(v, math.log10(y) if log else y) for v, y in points]
    for series, (color, marker) in style.items():
        own = [(v, y) for v, y in points if v.series == series]
        sizes, shown = [v.size for v, _ in own], [y for _, y in own]
        axes.plot(sizes, shown, color=color, marker=marker, markersize=5.5, linewidth=1, zorder=3)
        for variant, y in own:
            axes.annotate(
                "/".join(str(n) for n in (variant.rank, variant.joint_rank) if n is not None),
                (variant.size, y),
                xytext=(0, 5) if _label_above(variant, heights) else (0, -11),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
                color=color,
                path_effects=[withStroke(linewidth=1.8, foreground="white")],
            )


def _label_above(variant: Variant, heights: Sequence[tuple[Variant, float]]) -> bool:
    """Return whether the nearest point of another structure and like size lies below: labels go to the free side."""
    (own,) = [y for v, y in heights if v is variant]
    near = [y for v, y in heights if v.series != variant.series and 2 / 3 < v.size / variant.size < 3 / 2]
    return not near or min(near, key=lambda y: abs(y - own)) <= own


def _spread(correlation: float) -> float:
    """Return a height at which 0.9, 0.99 and 0.999 are equally far apart."""
    return -math.log10(1 - min(correlation, 1.0) + _CLOSEST)
