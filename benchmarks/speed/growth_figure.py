"""The figure of ``growth``: a panel for each axis, time and memory over its sizes, a dashed line of slope 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

_TIME, _MEMORY, _GUIDE = "#1b6ca8", "#c8553d", "0.6"
_COLUMNS = 4


def draw(axes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the figure.

    Args:
        axes: as in growth.json.
    """
    lines = -(-len(axes) // _COLUMNS)
    figure = Figure(figsize=(3.2 * _COLUMNS, 3.0 * lines), layout="constrained")
    panels = list(figure.subplots(lines, _COLUMNS, squeeze=False, sharey=True).flat)
    for panel, axis in zip(panels, axes, strict=False):
        _panel(panel, axis)
    for panel in panels[len(axes) :]:
        panel.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def _panel(panel: Axes, axis: Mapping[str, Any]) -> None:
    sizes = axis["sizes"]
    for key, label, color, marker in (
        ("seconds", "time, in units of its least", _TIME, "o"),
        ("bytes", "peak memory above the model, in units of its least", _MEMORY, "s"),
    ):
        values = axis[key]
        panel.loglog(sizes, [v / min(values) for v in values], marker=marker, color=color, label=label, markersize=4)
    panel.loglog(sizes, [s / sizes[0] for s in sizes], "--", color=_GUIDE, label="slope 1", zorder=0)
    end = f"{axis['seconds'][-1]:.2g} s, {axis['bytes'][-1] / 1e6:.3g} MB at {sizes[-1]}"
    panel.set_title(f"{axis['axis']}: {axis['what']}\n{end}", fontsize=9)
    panel.xaxis.set_major_locator(FixedLocator(sizes))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.yaxis.set_major_locator(FixedLocator([2**i for i in range(-2, 12)]))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(alpha=0.3)
