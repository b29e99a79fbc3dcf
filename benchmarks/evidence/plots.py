"""The plot of a budget: every method's difference from temperature scaling, task by task."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.evidence.decision import Cell, reported
from benchmarks.evidence.methods import METHODS
from benchmarks.evidence.plan import BUDGETS, REPORTED
from benchmarks.evidence.tables import methods_of
from benchmarks.harness.pictures import save_picture

_COLOURS = {"win": "#2a6fb0", "tie": "#8c8c8c", "open": "#c9b458", "loss": "#c44e52"}
_CAPTION = (
    "NLL less temperature scaling's, nats: left of the line is better. Blue: better, red: worse, beyond the "
    "interval; yellow: open, of one training. An arrow lies beyond the edge."
)
#: Characters of the caption on an inch.
_CHARACTERS = 11
#: Farther differences than these are drawn at the edge: of the methods that set a task's scale, times so much; nats.
_SCALES, _TIMES, _LEAST = ("conditioned", "orders_temperature"), 1.5, 0.03


def write_plots(every: Sequence[Cell], folder: Path) -> list[Path]:
    """Write a plot for each budget that has results on the reporting half, and return their paths."""
    return [
        save_picture(figure(chosen), folder / picture_name(budget))
        for budget in BUDGETS
        if (chosen := list(reported(every, budget)))
    ]


def picture_name(budget: int) -> str:
    """Return the file of a budget's plot."""
    return f"differences-{budget}.png"


def figure(chosen: Sequence[Cell]) -> Figure:
    """Return a panel for each task: every method's NLL less temperature scaling's, with its interval."""
    tasks = sorted({cell.task for cell in chosen}, key=REPORTED.index)
    names = [n for n in methods_of(chosen) if n != "map"]
    made = Figure(figsize=(2.6 * len(tasks) + 2.6, 0.24 * len(names) + 1.3), layout="constrained")
    panels = made.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        scale = [abs(c.differences["nll"].mean) for c in chosen if c.task == task and c.method in _SCALES]
        reach = max([_LEAST, *(_TIMES * size for size in scale)])
        for place, name in enumerate(names):
            for cell in (c for c in chosen if c.task == task and c.method == name):
                found = cell.differences["nll"]
                low, mean, high = (max(-reach, min(reach, v)) for v in (found.low, found.mean, found.high))
                panel.plot([low, high], [place, place], color=_COLOURS[found.verdict], linewidth=1.2)
                marker = "o" if abs(found.mean) < reach else ">" if found.mean > 0 else "<"
                panel.plot([mean], [place], marker, color=_COLOURS[found.verdict], markersize=4)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlim(-1.05 * reach, 1.05 * reach)
        panel.set_title(task, fontsize=10)
        panel.tick_params(labelsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_yticks(range(len(names)), [METHODS[n].title for n in names], fontsize=8)
    panels[0].invert_yaxis()
    caption = textwrap.fill(_CAPTION, int(_CHARACTERS * made.get_figwidth()))
    made.suptitle(caption, fontsize=10)
    return made
