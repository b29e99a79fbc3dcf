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

`python -m benchmarks.promises` writes this page from results.json, which has every figure. A population is a
method's answers of labelled rows, made without their labels, and of 500 test rows. Each of {draws:,} draws takes
calibration rows from it with replacement and sets the threshold. The population's error rate up to the threshold is
exact. The rule's constants were chosen on synthetic models and {chose}, whose mean is a row of its own.

*Error*: wrong / accepted over all draws and methods of a task. *Accepted*: mean share. *Above*: share of draws that
accept something and err above the target. *Empty*: share of draws that accept nothing. Figures are per cent, means
over methods.
"""
_BOUND = """## `upper_bound` of 90 %

The figures are of the adapter as it is, means over tasks. The worst task is in brackets.
"""
_BEFORE = """## Before any draw

*Labelled* and *test* are the shares of wrong answers, which show how exchangeable the rows were. *Sets* is the
share of test rows whose label set of 90 %, fitted on the labelled rows, holds the label.
"""


def render(results: Mapping[str, Any]) -> str:
    every = pd.DataFrame(results["figures"])
    records = every[every["rule"] != "upper_bound"].drop(columns=["error"])
    by_task = records.groupby(["target", "rows", "rule", "task"], sort=False).mean(numeric_only=True)
    by_task["error"] = by_task["wrong"] / by_task["accepted"].where(by_task["accepted"] > 0)
    order = list(dict.fromkeys(records["task"]))
    groups = [[task for task in order if (task in CHOSE) == chose] for chose in (False, True)]
    parts = [_HEAD.format(draws=results["draws"], chose=", ".join(CHOSE))]
    for (target, rows), of in by_task.xs("empirical", level="rule").groupby(level=["target", "rows"], sort=False):
        means = of.droplevel(["target", "rows"])
        lines = [
            _line(name, means, tasks)
            for name, tasks in zip(("mean of the others", "mean of those that chose"), groups, strict=True)
        ]
        if (target, rows) == (records["target"].min(), records["rows"].min()):
            lines += [_line(task, means, [task]) for task in order]
        parts.append(f"## Target {target:.0%}, {rows} calibration rows\n")
        parts.append(markdown_table(["task", "error", "accepted", "above", "empty"], lines))
    shares = pd.DataFrame(results["transfer"]).groupby("task", sort=False).mean(numeric_only=True) * 100
    parts.append(_BOUND)
    lines = []
    for (target, rows), of in every[every["rule"] == "upper_bound"].groupby(["target", "rows"], sort=False):
        above, *means = (f"{100 * of[name].mean():.1f}" for name in ("above", "accepted", "empty"))
        lines.append([f"{target:.0%}", rows, f"{above} ({100 * of['above'].max():.1f})", *means])
    parts.append(markdown_table(["target", "rows", "above", "accepted", "empty"], lines))
    parts.append(_BEFORE)
    lines = [[task, *(f"{value:.1f}" for value in row)] for task, row in shares.iterrows()]
    return "\n".join([*parts, markdown_table(["task", "labelled", "test", "sets"], lines)])


def _line(name: str, figures: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """Return the cells of one task, or of means over tasks."""
    columns = ("error", "accepted", "above", "empty")
    return [name, *(f"{100 * figures.loc[tasks, column].mean():.1f}" for column in columns)]
