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

Written by `python -m benchmarks.promises experts` from results.json, which has every method; {draws:,} draws a line. A
population is a method's answers of labelled rows, each made without its label, and of 500 test rows. A draw takes
calibration rows from it, sets the threshold, and judges all other rows. The rule's constants were chosen on synthetic
models and {chose}. In brackets: the rule before, by which the accepted rows and one mistake more
stay within the target.

*Error*: wrong / accepted, of all draws and methods of a task. *Within*: tasks with an error of at most the target and
half a point. *Difference*: of the accepted share, ± its standard error over tasks. *Empty*: share of draws that accept
nothing. Per cent; means over a task's methods, and over tasks.
"""
_BY_TASK = """Errors by task, target / rows; then accepted and empty at {target:.0%} of {rows} rows. *Worst*: error of
the method that errs most there, of those that accept 5 % and more. *Labelled*, *test*: wrong answers before any draw,
which is how exchangeable the rows were. *Sets*: test rows whose label set of 90 %, its threshold from the labelled
rows, holds the label.
"""
#: A rule's records by their names.
Rules = Mapping[str, Record]


def render(results: Mapping[str, Any]) -> str:
    """Return the page."""
    settings: dict[tuple[float, int], dict[str, dict[str, dict[str, Record]]]] = {}
    for r in results["figures"]:
        tasks = settings.setdefault((r["target"], r["rows"]), {})
        tasks.setdefault(r["task"], {}).setdefault(r["method"], {})[r["rule"]] = r
    means, first = [], next(iter(settings))
    for (target, rows), tasks in settings.items():
        for which, some in (("reported", set(tasks) - set(CHOSE)), ("chose", set(tasks) & set(CHOSE))):
            groups = [list(methods.values()) for task, methods in tasks.items() if task in some]
            means.append([f"{target:.0%}", rows, f"{which}: {len(groups)}", *_means(groups, target)])
    columns = ["target", "rows", "tasks", "error", "within", "accepted", "difference", "sd", "empty"]
    parts = [_HEAD.format(draws=results["draws"], chose=", ".join(CHOSE)), markdown_table(columns, means, left=(0, 2))]
    lines = []
    for task, methods in settings[first].items():
        some = list(methods.values())
        errors = [_both(list(of[task].values()), _rate) for of in settings.values()]
        seen = [r for r in results["transfer"] if r["task"] == task]
        shares = [f"{100 * _mean(seen, name):.1f}" for name in ("labelled", "test", "coverage")]
        figures = [_both(some, lambda records, n=name: _mean(records, n)) for name in ("accepted", "empty")]
        lines.append([task, *errors, _both(some, _worst), *figures, *shares])
    columns = ["task", *(f"{target:.0%} / {rows}" for target, rows in settings), "worst", "accepted", "empty"]
    table = markdown_table([*columns, "labelled", "test", "sets"], lines)
    return "\n".join([*parts, _BY_TASK.format(target=first[0], rows=first[1]), table])


def _means(tasks: Sequence[Sequence[Rules]], target: float) -> list[str]:
    """Return the cells of tasks, each a mean of its methods."""

    def over(one: Callable[[Sequence[Record]], float | None]) -> dict[str, torch.Tensor]:
        return {
            rule: torch.tensor([one([rules[rule] for rules in methods]) or 0.0 for methods in tasks])
            for rule in ("empirical", "before")
        }

    def shown(of: Mapping[str, torch.Tensor], name: str = "{:.1f}", scale: float = 100) -> str:
        after, before = (name.format(scale * float(of[rule].mean())) for rule in ("empirical", "before"))
        return f"{after} ({before})"

    rates = over(_rate)
    within = {rule: (rate <= target + 0.005).double() for rule, rate in rates.items()}
    accepted, sd, empty = (over(lambda records, n=name: _mean(records, n)) for name in ("accepted", "sd", "empty"))
    gain = accepted["empirical"] - accepted["before"]
    error = gain.std() / len(gain) ** 0.5
    difference = f"{100 * float(gain.mean()):+.1f} ± {100 * float(error):.1f}"
    return [shown(rates), shown(within, "{:.0f}", len(tasks)), shown(accepted), difference, shown(sd), shown(empty)]


def _both(methods: Sequence[Rules], figure: Callable[[Sequence[Record]], float | None]) -> str:
    """Return a figure of some methods by the rule, and in brackets by the one before."""
    values = (figure([rules[rule] for rules in methods]) for rule in ("empirical", "before"))
    after, before = ("-" if value is None else f"{100 * value:.1f}" for value in values)
    return f"{after} ({before})"


def _rate(records: Sequence[Record]) -> float | None:
    """Return wrong / accepted over all draws of some methods; None where nothing is accepted."""
    accepted = sum(r["accepted"] for r in records)
    return sum(r["wrong"] for r in records) / accepted if accepted else None


def _worst(records: Sequence[Record]) -> float | None:
    return max((r["wrong"] / r["accepted"] for r in records if r["accepted"] >= 0.05), default=None)


def _mean(records: Sequence[Record], name: str) -> float:
    return float(sum(r[name] for r in records) / len(records))
