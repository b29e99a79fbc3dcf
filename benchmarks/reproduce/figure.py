"""The figure of a reproduction: accuracy, NLL and ECE against optimizer steps, of every model."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from benchmarks.reproduce.subjects import TASKS
from benchmarks.reproduce.tables import Record, by_pair
from laplora.report.names import display_name

_PANELS = (("accuracy", "accuracy"), ("nll", "NLL, nats"), ("ece", "ECE"))
_STYLES: Mapping[str, tuple[str, str, Literal["-", "--"]]] = {
    "map": ("#c44e52", "o", "-"),
    "temperature": ("#dd8452", "s", "--"),
    "laplace": ("#2a6fb0", "^", "-"),
}


def steps_figure(records: Sequence[Record]) -> Figure:
    """Return a row of panels for each model and task; the mean over seeds, each seed as a faint line."""
    pairs = by_pair(records)
    figure = Figure(figsize=(11, 2.6 * len(pairs) + 0.7), layout="constrained")
    rows = figure.subplots(len(pairs), len(_PANELS), squeeze=False, sharex="row")
    for axes, ((model, task), seeds) in zip(rows, pairs.items(), strict=True):
        for axis, (metric, title) in zip(axes, _PANELS, strict=True):
            _panel(axis, seeds, metric)
            axis.set_ylabel(title)
            axis.grid(alpha=0.3)
        axes[0].set_title(f"{model}, {TASKS[task]}", loc="left", fontsize=10)
    for axis in rows[-1]:
        axis.set_xlabel("optimizer steps (0: the base)")
    lines = [Line2D([], [], color=c, marker=m, linestyle=s) for c, m, s in _STYLES.values()]
    figure.legend(
        lines, [display_name(method) for method in _STYLES], loc="outside upper center", ncols=3, frameon=False
    )
    return figure


def _panel(axis: Axes, seeds: Sequence[Record], metric: str) -> None:
    for method, (color, marker, style) in _STYLES.items():
        lines = []
        for record in seeds:
            points = {int(s): of[method][metric] for s, of in record["checkpoints"].items() if method in of}
            lines.append(points)
            if len(seeds) > 1:
                axis.plot(*zip(*sorted(points.items()), strict=True), color=color, alpha=0.25, linewidth=1)
        shared = sorted(set.intersection(*map(set, lines)))
        means = [statistics.mean(points[step] for points in lines) for step in shared]
        axis.plot(shared, means, color=color, marker=marker, linestyle=style, markersize=4)


def save_picture(figure: Figure, path: Path) -> Path:
    """Write a figure with few colours, which makes it a third of the size, and return its path."""
    raw = io.BytesIO()
    figure.savefig(raw, dpi=100, format="png")
    with Image.open(raw) as picture:
        # By coverage: the colours of single points count as much as those of areas.
        few = picture.convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path
