"""The study's two plots, from study.json alone: NLL against MAP, and calibration before and after."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from benchmarks.study.results.records import Tables
from training.report.pictures import save_picture

#: Of a reliability diagram.
BINS = 15
NLL_PLOT = "study_nll.png"
RELIABILITY_PLOT = "study_reliability.png"

_MAP, _RECOMMENDED = "#c44e52", "#2a6fb0"
_FAMILIES = ("#2a6fb0", "#dd8452", "#55a868", "#8172b3", "#937860", "#da8bc3", "#64b5cd", "#ccb974", "#8c8c8c")

#: An axis reaches this many times as far above 0 as the best method lies below it; farther ones are at its edge.
_REACH = 1.5
#: ... and at least this far, nats.
_LEAST_REACH = 0.02


def write_plots(tables: Tables, folder: Path) -> list[Path]:
    """Write both plots and return their paths."""
    return [
        save_picture(nll_figure(tables), folder / NLL_PLOT),
        save_picture(reliability_figure(tables), folder / RELIABILITY_PLOT),
    ]


def nll_figure(tables: Tables) -> Figure:
    """Return a panel per task: every method's NLL less MAP's with its 95 % interval; the recommended ones ringed."""
    methods = tables["methods"][tables["methods"].method != "map"]
    colors = dict(zip(sorted(set(methods.family)), _FAMILIES, strict=False))
    tasks = tables["tasks"]
    rows, columns = grid_shape(len(tasks))
    # Each method needs a line, each row of panels a title and an axis, a lone panel room for the legend.
    size = (max(7.0, 3.0 * columns + 2.2), rows * (0.19 * len(methods) + 1.1) + 1.0)
    figure, grid = _panels(size, "NLL less MAP's on the test rows, nats: left of the line is better", len(tasks), True)
    pairs = tables["comparisons"][tables["comparisons"].against == "map"]
    for i, task in enumerate(tasks.itertuples()):
        axes = grid[i]
        chosen = set(tables["seeds"][tables["seeds"].task == task.task].recommended)
        _draw_differences(axes, methods.merge(pairs[pairs.task == task.task], on="method", how="left"), chosen, colors)
        axes.set_title(f"{task.task}, {len(task.seeds)} seed{'s' * (len(task.seeds) > 1)}", fontsize=10)
        if i % columns == 0:
            axes.set_yticks(range(len(methods)), methods.title, fontsize=8)
    grid[0].set_ylim(len(methods) - 0.5, -0.5)
    handles = [
        *(Line2D([], [], color=c, marker="o", linestyle="-", markersize=5, label=f) for f, c in colors.items()),
        Line2D([], [], color="black", marker="o", linestyle="", markersize=9, fillstyle="none", label="recommended"),
        Line2D([], [], color="black", marker=">", linestyle="", markersize=5, label="off the axis"),
    ]
    ncols = max(2, min(len(handles), int(size[0] / 1.9)))
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9)
    return figure


def reliability_figure(tables: Tables) -> Figure:
    """Return a panel per task: accuracy per confidence bin of MAP and of what is recommended, all seeds together."""
    tasks = list(tables["tasks"].task)
    rows, columns = grid_shape(len(tasks))
    size = (max(5.6, 3.0 * columns + 0.4), 2.9 * rows + 1.1)
    figure, grid = _panels(size, "Accuracy per confidence bin, seeds together", len(tasks), False)
    for i, task in enumerate(tasks):
        axes = grid[i]
        details = tables["seeds"][tables["seeds"].task == task]
        before, after = pooled_bins(details.map_bins), pooled_bins(details.recommended_bins)
        left = min(*before.index, *after.index) / BINS
        axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
        for bins, color in ((before, _MAP), (after, _RECOMMENDED)):
            axes.plot(bins.confidence, bins.accuracy, color=color, linewidth=1.4)
            sizes = 8 + 260 * bins.rows / bins.rows.sum()
            axes.scatter(bins.confidence, bins.accuracy, s=sizes, color=color, alpha=0.55, linewidths=0)
        # Room beside the edges for the largest dot.
        axes.set_xlim(left, 1 + 0.04 * (1 - left))
        axes.set_ylim(-0.04, 1.04)
        scores = tables["scores"][tables["scores"].task == task]
        eces = scores[scores.method == "map"].ece.mean(), scores[scores.recommended.astype(bool)].ece.mean()
        axes.set_title(f"{task}\nECE {' → '.join(f'{ece:.3f}' for ece in eces)}", fontsize=10)
        axes.set_xlabel("confidence", fontsize=9)
        if i % columns == 0:
            axes.set_ylabel("accuracy", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=_MAP, marker="o", label="MAP"),
        Line2D([], [], color=_RECOMMENDED, marker="o", label="recommended (dots: share of rows)"),
        Line2D([], [], color="black", linestyle="--", linewidth=1, label="perfect calibration"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def grid_shape(panels: int) -> tuple[int, int]:
    """Return rows and columns for that many panels: three or four columns, whichever leaves fewer places empty."""
    columns = min((4, 3), key=lambda c: -panels % c) if panels > 4 else panels
    return -(-panels // columns), columns


def _panels(size: tuple[float, float], title: str, count: int, sharey: bool) -> tuple[Figure, Any]:
    """Return a figure with its axes, row by row; those beyond the number of panels are hidden."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    grid = figure.subplots(*grid_shape(count), squeeze=False, sharey=sharey).flat
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid


def pooled_bins(seeds: Iterable[Iterable[tuple[int, int, float, float]]]) -> pd.DataFrame:
    """Return rows, confidence and accuracy by bin: several reliability diagrams as that of their rows together."""
    bins = pd.DataFrame([b for bins in seeds for b in bins], columns=["bin", "rows", "confidence", "accuracy"])
    weighted = bins.assign(confidence=bins.confidence * bins.rows, accuracy=bins.accuracy * bins.rows)
    sums = weighted.groupby("bin").sum()
    return sums.assign(confidence=sums.confidence / sums.rows, accuracy=sums.accuracy / sums.rows)


def _draw_differences(axes: Axes, compared: pd.DataFrame, chosen: set[str], colors: dict[str, str]) -> None:
    """Draw one task's differences, one line a method; what is far worse than MAP stands at the right edge."""
    lowest, highest = min(compared.low.min(), 0.0), max(compared.high.max(), 0.0)
    right = min(highest, max(-_REACH * lowest, _LEAST_REACH))
    width = max(right - lowest, _LEAST_REACH)
    axes.set_xlim(lowest - 0.06 * width, right + 0.08 * width)
    axes.axvline(0, color=_MAP, linewidth=1.2)
    for i, one in compared.iterrows():
        if i % 2:
            axes.axhspan(i - 0.5, i + 0.5, color="#f2f2f2", zorder=0)
        if pd.isna(one.difference):
            continue
        color, beyond, shown = colors[one.family], one.difference > right, min(one.difference, right)
        if one.low < right:
            axes.plot([one.low, min(one.high, right)], [i, i], color=color, linewidth=1.8, solid_capstyle="butt")
        axes.plot(shown, i, marker=">" if beyond else "o", color=color, markersize=4.5)
        if one.method in chosen:
            axes.plot(shown, i, marker="o", color="black", markersize=9, fillstyle="none", linewidth=0)
        if beyond:
            # over the interval's line, so on white
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            text = f"{one.difference:+.2f}"
            axes.text(right - 0.06 * width, i, text, ha="right", va="center", fontsize=7, bbox=paper)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
