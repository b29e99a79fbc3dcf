"""RESULTS.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from training.report.markdown import markdown_table

PAGE, RESULTS = (Path(__file__).parent / name for name in ("RESULTS.md", "results.json"))
#: Tasks that chose the rule's constants, as synthetic models did.
CHOSE = ("emotion", "irony", "sst2", "banking77")
_HEAD = """# How near its target `empirical` comes

Written by `python -m benchmarks.promises` from results.json, which has every line; {draws:,} draws each. A
population is a method's answers of labelled rows, each made without its label, and of 500 test rows. A draw takes
calibration rows from it with replacement and sets the threshold; the population's own error rate up to it is exact. The
rule's constants were chosen on synthetic models and {chose}: their mean is a row of its own. In brackets: the
rule before, by which the accepted rows and one mistake more stay within the target.

*Error*: wrong / accepted, of all draws and methods of a task. *Accepted*: mean share; of means over tasks with what the
rule gained, ± its standard error. *Sd*: over draws. *Above*: share of draws that accept something and err above the
target. *Empty*: share of draws that accept nothing. *Labelled*, *test*: wrong answers before any draw, which is how
exchangeable the rows were. *Sets*: test rows whose label set of 90 %, its threshold from the labelled rows, holds the
label. Per cent, means over methods.
"""
_BOUND = """## `upper_bound` of 90 %

Of the adapter as it is, means over tasks; *above* with the worst task in brackets.
"""


def render(results: Mapping[str, Any]) -> str:
    """Return the page."""
    every = pd.DataFrame(results["figures"])
    records = every[every["rule"] != "upper_bound"].drop(columns=["error"])
    by_task = records.groupby(["target", "rows", "rule", "task"], sort=False).mean(numeric_only=True)
    by_task["error"] = by_task["wrong"] / by_task["accepted"].where(by_task["accepted"] > 0)
    order = list(dict.fromkeys(records["task"]))
    groups = [[task for task in order if (task in CHOSE) == chose] for chose in (False, True)]
    parts = [_HEAD.format(draws=results["draws"], chose=", ".join(CHOSE))]
    for (target, rows), of in by_task.groupby(level=["target", "rows"], sort=False):
        after, before = (of.xs(rule, level="rule").droplevel(["target", "rows"]) for rule in ("empirical", "before"))
        lines = [
            _line(name, after, before, tasks)
            for name, tasks in zip(("mean of the others", "mean of those that chose"), groups, strict=True)
        ]
        if (target, rows) == (records["target"].min(), records["rows"].min()):
            lines += [_line(task, after, before, [task]) for task in order]
        parts.append(f"## Target {target:.0%}, {rows} calibration rows\n")
        parts.append(markdown_table(["task", "error", "accepted", "sd", "above", "empty"], lines))
    shares = pd.DataFrame(results["transfer"]).groupby("task", sort=False).mean(numeric_only=True) * 100
    parts.append(_BOUND)
    lines = []
    for (target, rows), of in every[every["rule"] == "upper_bound"].groupby(["target", "rows"], sort=False):
        above, *means = (f"{100 * of[name].mean():.1f}" for name in ("above", "accepted", "empty"))
        lines.append([f"{target:.0%}", rows, f"{above} ({100 * of['above'].max():.1f})", *means])
    parts.append(markdown_table(["target", "rows", "above", "accepted", "empty"], lines))
    parts.append("## Before any draw\n")
    lines = [[task, *(f"{value:.1f}" for value in row)] for task, row in shares.iterrows()]
    return "\n".join([*parts, markdown_table(["task", "labelled", "test", "sets"], lines)])


def _line(name: str, after: pd.DataFrame, before: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """Return the cells of one task, or of means over tasks."""
    cells = {}
    for figure in ("error", "accepted", "sd", "above", "empty"):
        cells[figure] = f"{100 * after.loc[tasks, figure].mean():.1f} ({100 * before.loc[tasks, figure].mean():.1f})"
    if len(tasks) > 1:
        gain = 100 * (after.loc[tasks, "accepted"] - before.loc[tasks, "accepted"])
        cells["accepted"] += f", {gain.mean():+.1f} ± {gain.sem():.1f}"
    return [name, *cells.values()]
