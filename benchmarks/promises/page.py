"""RESULTS.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experts.scores import Record
from training.report.markdown import markdown_table

PAGE, RESULTS = (Path(__file__).parent / name for name in ("RESULTS.md", "results.json"))
#: Tasks that chose the rule's constants, as synthetic models did.
CHOSE = ("emotion", "irony", "sst2", "banking77")
_HEAD = """# How near its target `empirical` comes

Written by `python -m benchmarks.promises experts` from results.json: {draws:,} draws a line, shared by {seeds} seeds. A
population is a method's answers of 450 labelled rows, each made without its label (`temperature`: of the 150 that did
not train the adapter; CLINC150: 500), and of 500 test rows. A draw takes calibration rows from it, sets the threshold,
and judges all other rows. That makes rows exchangeable; the last table shows how far they were before. The rule's
constants were chosen on synthetic models and on {chose}. The other tasks chose nothing. In brackets: the rule before,
by which the accepted rows and one mistake more stay within the target.

*Error*: wrong / accepted over all draws. *By draw*: mean error rate of the draws that accept something. *Above*: share
of draws with an error rate above the target, with the noise of the rows that judge in it. *Accepted*: mean share, ± its
standard deviation over draws. *Empty*: share of draws that accept nothing. All in per cent.

## Means over tasks

Each task has the mean of its methods. *Error* and *within* (how many tasks have an error of at most the target and half
a point) are of all methods' accepted rows together. *Difference*: of the accepted share, ± its standard error over
tasks.
"""
_TRANSFER = """Rows as they came: share of wrong answers of labelled and of test rows, and share of test rows whose
label set of 90 % (`lac`), its threshold from the labelled rows, holds the label. Means over seeds, per cent.
"""
#: A rule's records by their names.
Rules = Mapping[str, Record]


def render(results: Mapping[str, Any]) -> str:
    """Return the page."""
    settings: dict[tuple[float, int], dict[tuple[str, str], dict[str, Record]]] = {}
    for r in results["figures"]:
        cell = settings.setdefault((r["target"], r["rows"]), {}).setdefault((r["task"], r["method"]), {})
        cell[r["rule"]] = r
    parts = [_HEAD.format(draws=results["draws"], seeds=results["seeds"], chose=", ".join(CHOSE))]
    means = []
    for (target, rows), cells in settings.items():
        for chose in (False, True):
            groups: dict[str, list[Rules]] = {}
            for (task, _), rules in cells.items():
                if (task in CHOSE) == chose:
                    groups.setdefault(task, []).append(rules)
            which = "chose" if chose else "reported"
            means.append([f"{target:.0%}", rows, which, len(groups), *_means(list(groups.values()), target)])
    columns = ["target", "rows", "tasks", "number", "error", "within", "accepted", "difference", "sd", "empty"]
    parts.append(markdown_table(columns, means, left=(0, 2)))
    for (target, rows), cells in settings.items():
        parts.append(f"## Target {target:.0%}, {rows} calibration rows\n")
        columns = ["task", "method", "error", "by draw", "above", "accepted", "empty"]
        parts.append(markdown_table(columns, [[*cell, *_line(rules)] for cell, rules in cells.items()], left=(0, 1)))
    parts.append(f"## From labelled rows to test rows\n\n{_TRANSFER}")
    shares = ("labelled", "test", "coverage")
    lines = [[r["task"], r["method"], *(f"{100 * r[name]:.1f}" for name in shares)] for r in results["transfer"]]
    parts.append(markdown_table(["task", "method", *shares], lines, left=(0, 1)))
    return "\n".join(parts)


def _line(rules: Rules) -> list[str]:
    """Return the cells of a method."""

    def both(shown: Callable[[Record], str]) -> str:
        return f"{shown(rules['empirical'])} ({shown(rules['before'])})"

    return [
        both(lambda r: _percent(_rate([r]))),
        both(lambda r: _percent(r["error"])),
        both(lambda r: f"{100 * r['above']:.0f}"),
        both(lambda r: f"{_percent(r['accepted'])} ± {_percent(r['sd'])}"),
        both(lambda r: _percent(r["empty"])),
    ]


def _means(tasks: Sequence[Sequence[Rules]], target: float) -> list[str]:
    """Return the cells of tasks, each a mean of its methods."""
    cells = []
    for name in ("rate", "within", "accepted", "difference", "sd", "empty"):
        of: dict[str, torch.Tensor] = {}
        for rule in ("empirical", "before"):
            records = [[rules[rule] for rules in methods] for methods in tasks]
            rates = torch.tensor([_rate(some) or 0.0 for some in records])
            if name == "rate":
                of[rule] = rates
            elif name == "within":
                of[rule] = (rates <= target + 0.005).double()
            else:
                figure = "accepted" if name == "difference" else name
                of[rule] = torch.tensor([sum(r[figure] for r in some) / len(some) for some in records])
        if name == "difference":
            gain = of["empirical"] - of["before"]
            cells.append(f"{100 * gain.mean():+.1f} ± {100 * gain.std() / len(gain) ** 0.5:.1f}")
        elif name == "within":
            cells.append(f"{int(of['empirical'].sum())} ({int(of['before'].sum())})")
        else:
            cells.append(f"{_percent(float(of['empirical'].mean()))} ({_percent(float(of['before'].mean()))})")
    return cells


def _rate(records: Sequence[Record]) -> float | None:
    """Return wrong / accepted over all draws of some methods; None where nothing is accepted."""
    accepted = sum(r["accepted"] for r in records)
    return sum(r["wrong"] for r in records) / accepted if accepted else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
