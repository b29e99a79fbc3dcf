"""The study's two plots, from the published JSON files alone: NLL against MAP, and calibration before and after."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from benchmarks.study.results.records import Bin, Comparison, Published, ordered_methods
from benchmarks.study.results.scores import BINS

NLL_PLOT = "study_nll.png"
RELIABILITY_PLOT = "study_reliability.png"

_DPI = 100
#: Colours of a written picture: enough for these plots, at a third of the size.
_PALETTE = 64
_MAP, _RECOMMENDED = "#c44e52", "#2a6fb0"
_FAMILIES = ("#2a6fb0", "#dd8452", "#55a868", "#8172b3", "#937860", "#da8bc3", "#64b5cd", "#ccb974", "#8c8c8c")

#: An axis reaches this many times as far above 0 as the best method lies below it; farther ones are at its edge.
_REACH = 1.5
#: ... and at least this far, nats.
_LEAST_REACH = 0.02


def write_plots(published: Published, folder: Path) -> list[Path]:
    """Write both plots and return their paths; none where nothing is published."""
    if not published.scores:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / NLL_PLOT, folder / RELIABILITY_PLOT]
    save_picture(nll_figure(published), paths[0])
    save_picture(reliability_figure(published), paths[1])
    return paths


def save_picture(figure: Figure, path: Path, colors: int = _PALETTE) -> Path:
    """Write a figure with few colours, which keeps it small, and return its path."""
    raw = io.BytesIO()
    figure.savefig(raw, dpi=_DPI, format="png")
    with Image.open(raw) as picture:
        # By coverage: the colours of single points count as much as those of areas.
        few = picture.convert("RGB").quantize(colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path


def nll_figure(published: Published) -> Figure:
    """Return a panel per task: every method's NLL less MAP's with its 95 % interval; the recommended ones ringed."""
    tasks = list(published.setup.tasks)
    methods = [m for m in ordered_methods(published) if m != "map"]
    families = sorted({published.setup.methods[m].family for m in methods})
    colors = {family: _FAMILIES[i % len(_FAMILIES)] for i, family in enumerate(families)}
    rows, columns = grid_shape(len(tasks))
    # Each method needs a line of its own, each row of panels a title and an axis, a lone panel room for the legend.
    size = (max(7.0, 3.0 * columns + 2.2), rows * (0.19 * len(methods) + 1.1) + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("NLL less MAP's on the test rows, nats: left of the line is better", fontsize=12, fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for i, task in enumerate(tasks):
        axes = grid[i // columns, i % columns]
        chosen = {s.recommended for s in published.details.seeds if s.task == task}
        own = {c.method: c for c in published.comparisons if c.task == task and c.against == "map"}
        _draw_differences(axes, own, methods, chosen, {m: colors[published.setup.methods[m].family] for m in methods})
        seeds = len(published.setup.tasks[task].seeds)
        axes.set_title(f"{task}, {seeds} seed{'s' * (seeds > 1)}", fontsize=10)
        if i % columns == 0:
            axes.set_yticks(range(len(methods)), [published.setup.methods[m].title for m in methods], fontsize=8)
    axes = grid[0, 0]
    axes.set_ylim(len(methods) - 0.5, -0.5)
    for empty in range(len(tasks), rows * columns):
        grid[empty // columns, empty % columns].set_axis_off()
    handles = [Line2D([], [], color=c, marker="o", linestyle="-", markersize=5, label=f) for f, c in colors.items()]
    ring = Line2D([], [], color="black", marker="o", linestyle="", markersize=9, fillstyle="none", label="recommended")
    beyond = Line2D([], [], color="black", marker=">", linestyle="", markersize=5, label="off the axis")
    columns_of_legend = max(2, min(len(handles) + 2, int(size[0] / 1.9)))
    figure.legend(
        handles=[*handles, ring, beyond],
        loc="outside lower center",
        ncols=columns_of_legend,
        frameon=False,
        fontsize=9,
    )
    return figure


def reliability_figure(published: Published) -> Figure:
    """Return a panel per task: accuracy per confidence bin of MAP and of what is recommended, all seeds together."""
    tasks = list(published.setup.tasks)
    rows, columns = grid_shape(len(tasks))
    figure = Figure(figsize=(max(5.6, 3.0 * columns + 0.4), 2.9 * rows + 1.1), layout="constrained")
    figure.suptitle("Accuracy per confidence bin, seeds together", fontsize=12, fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, task in enumerate(tasks):
        axes = grid[i // columns, i % columns]
        details = [s for s in published.details.seeds if s.task == task]
        before, after = pooled_bins(d.map_bins for d in details), pooled_bins(d.recommended_bins for d in details)
        left = min(b[0] for b in (*before, *after)) / BINS
        axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
        for bins, color in ((before, _MAP), (after, _RECOMMENDED)):
            total = sum(b[1] for b in bins)
            points = [b[2] for b in bins], [b[3] for b in bins]
            axes.plot(*points, color=color, linewidth=1.4)
            axes.scatter(*points, s=[8 + 260 * b[1] / total for b in bins], color=color, alpha=0.55, linewidths=0)
        # Room beside the edges for the largest dot.
        axes.set_xlim(left, 1 + 0.04 * (1 - left))
        axes.set_ylim(-0.04, 1.04)
        own = [s for s in published.scores if s.task == task]
        eces = [[s.ece for s in own if s.method == "map"], [s.ece for s in own if s.recommended]]
        axes.set_title(f"{task}\nECE {' → '.join(f'{sum(e) / len(e):.3f}' for e in eces)}", fontsize=10)
        axes.set_xlabel("confidence", fontsize=9)
        if i % columns == 0:
            axes.set_ylabel("accuracy", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for empty in range(len(tasks), rows * columns):
        grid[empty // columns, empty % columns].set_axis_off()
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


def pooled_bins(seeds: Iterable[tuple[Bin, ...]]) -> list[Bin]:
    """Return the bins of several reliability diagrams as those of their rows together."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for bins in seeds:
        for number, count, confidence, accuracy in bins:
            parts = (count, count * confidence, count * accuracy)
            sums[number] = [a + b for a, b in zip(sums[number], parts, strict=True)]
    return [(i, int(n), c / n, a / n) for i, (n, c, a) in sorted(sums.items())]


def _draw_differences(
    axes: Axes, own: dict[str, Comparison], methods: list[str], chosen: set[str], colors: dict[str, str]
) -> None:
    """Draw one task's differences, one line a method; what is far worse than MAP stands at the right edge."""
    lowest = min([c.low for c in own.values()] + [0.0])
    highest = max([c.high for c in own.values()] + [0.0])
    right = min(highest, max(-_REACH * lowest, _LEAST_REACH))
    width = max(right - lowest, _LEAST_REACH)
    axes.set_xlim(lowest - 0.06 * width, right + 0.08 * width)
    axes.axvline(0, color=_MAP, linewidth=1.2)
    for i, method in enumerate(methods):
        if i % 2:
            axes.axhspan(i - 0.5, i + 0.5, color="#f2f2f2", zorder=0)
        if method not in own:
            continue
        found, color = own[method], colors[method]
        if found.low < right:
            axes.plot([found.low, min(found.high, right)], [i, i], color=color, linewidth=1.8, solid_capstyle="butt")
        beyond = found.difference > right
        shown = min(found.difference, right)
        axes.plot(shown, i, marker=">" if beyond else "o", color=color, markersize=4.5)
        if method in chosen:
            axes.plot(shown, i, marker="o", color="black", markersize=9, fillstyle="none", linewidth=0)
        if beyond:
            # over the interval's line, so on white
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            text = f"{found.difference:+.2f}"
            axes.text(right - 0.06 * width, i, text, ha="right", va="center", fontsize=7, bbox=paper)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
