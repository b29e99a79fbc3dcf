"""The study's tables in docs/results.md, made from study.json alone.

Each stands between ``<!-- study:begin NAME -->`` and ``<!-- study:end NAME -->``, so that a test can compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from benchmarks.study.pages.approximation_table import approximation_table
from benchmarks.study.pages.plots import NLL_PLOT, RELIABILITY_PLOT
from benchmarks.study.pages.side_tables import (
    conformal_table,
    ensembles_table,
    escaped_titles,
    orders_table,
    over_seeds,
    price_table,
    rankings_table,
)
from benchmarks.study.results.records import REFERENCES, Tables
from benchmarks.study.results.scores import outcome, shown
from benchmarks.study.results.targets import judge, task_figures
from training.report.markdown import escaped, markdown_table

_SYMBOLS = {"win": "+", "tie": "=", "loss": "−"}
#: Metric tables: name -> (column, +1 where higher is better and -1 where lower is).
_METRICS: Mapping[str, tuple[str, int]] = {
    "nll": ("nll", -1),
    "ece": ("ece", -1),
    "accuracy": ("accuracy", 1),
    "brier": ("brier", -1),
    "auroc": ("auroc_error", 1),
}


def page_tables(tables: Tables) -> dict[str, str]:
    """Return every table of the page by the name of its markers, as Markdown."""
    return {name: make(tables) for name, make in TABLES.items()}


def setup_table(tables: Tables) -> str:
    """Return base model, sizes, steps, caps and seeds of every task, then the machines and versions."""
    sizes = ("classes", "train_rows", "calibration_rows", "rows", "steps")
    rows = [
        [
            *(task["task"], escaped("{model}, {quantization}".format_map(task["configuration"]["base"]))),
            *(task[size] for size in sizes),
            *(", ".join(map(str, task["seeds"])), _inline(task["capped"]) or "none", f"`{task['digest'][:8]}`"),
        ]
        for task in tables["tasks"].to_dict("records")
    ]
    heading = ["task", "base", "classes", "train", "calibration", "test", "steps", "seeds", "caps", "digest"]
    machines, versions = (
        "; or ".join(sorted({_inline(value) for values in tables["tasks"][name] for value in values}))
        for name in ("hardware", "versions")
    )
    return markdown_table(heading, rows, left={0, 1, 7, 8, 9}) + f"\nHardware: {machines}. Versions: {versions}.\n"


def metric_table(tables: Tables, column: str, sign: int) -> str:
    """Return one metric per method and task: mean ± standard deviation over seeds, the best mean bold.

    The last row is what each seed recommends. Only methods with all of a task's seeds can be its best; where all are
    equal as printed, none is.
    """
    columns = []
    for _, scores in tables["scores"].groupby("task"):
        seeds, values = scores.seed.nunique(), scores[column].astype(float)
        by_method = {m: values[scores.method == m] for m in tables["methods"].method}
        means = {m: round(sign * v.mean(), 3) for m, v in by_method.items() if v.count() == seeds}
        best = max(means.values()) if len(set(means.values())) > 1 else None
        texts = [over_seeds(v, seeds) for v in by_method.values()]
        cells = [
            f"**{text}**" if best is not None and means.get(m) == best else text
            for m, text in zip(by_method, texts, strict=True)
        ]
        columns.append([*cells, over_seeds(values[scores.recommended.astype(bool)], seeds)])
    titles = [*escaped_titles(tables).values(), "*recommended*"]
    return markdown_table(["method", *tables["tasks"].task], zip(titles, *columns, strict=True))


def matrix_table(tables: Tables) -> str:
    """Return which methods win (+), tie (=) or lose (−) in NLL: against MAP, then against temperature scaling.

    A win or a loss is a paired 95 % interval that excludes 0.
    """
    ends = {(c.task, c.method, c.against): outcome(c.low, c.high) for c in tables["comparisons"].itertuples()}
    rows = []
    for m in tables["methods"].itertuples():
        row = [escaped(m.title)]
        for task in tables["tasks"].task:
            row.append(" ".join(_SYMBOLS.get(ends.get((task, m.method, against), ""), "·") for against in REFERENCES))
        for against in REFERENCES:
            all_ends = [end for (_, method, other), end in ends.items() if (method, other) == (m.method, against)]
            row.append(" / ".join(str(all_ends.count(kind)) for kind in ("win", "tie", "loss")) if all_ends else "·")
        rows.append(row)
    heading = ["method", *tables["tasks"].task, "MAP: won / tied / lost", "temperature: won / tied / lost"]
    return markdown_table(heading, rows)


def recommended_table(tables: Tables) -> str:
    """Return what each task's seeds recommend and its NLL against MAP's and temperature scaling's."""
    titles, rows = escaped_titles(tables), []
    for task in task_figures(tables):
        counts = {m: task.recommended.count(m) for m in sorted(set(task.recommended))}
        chosen = [titles[m] + (f" ({n} of {task.seeds})" if n < task.seeds else "") for m, n in counts.items()]
        row = [task.task, task.seeds, ", ".join(chosen), f"{task.recommended_nll:.3f}", f"{task.map_nll:.3f}"]
        for bounds in (task.against_map, task.against_temperature):
            row += [shown(bounds), outcome(*bounds[1:])]
        rows.append(row)
    heading = ["task", "seeds", "recommended", "NLL", "MAP NLL", "against MAP", "", "against temperature", ""]
    return markdown_table(heading, rows, left={0, 2, 6, 8})


def figures_table(tables: Tables) -> str:
    """Return, per task, the figures behind the targets that are not about NLL."""
    heading = ["task", "test rows", "MAP ECE", "MAP confidence − accuracy", "overconfident", "ECE", "accuracy − MAP's"]
    rows = [
        [
            *(t.task, t.rows, f"{t.map_ece:.3f}", shown(t.gap), "yes" if t.overconfident else "no"),
            *(f"{t.recommended_ece:.3f}", f"{100 * t.accuracy_change:+.1f} points"),
            "-" if t.auroc_lead is None else f"{t.auroc_lead:+.3f}",
        ]
        for t in task_figures(tables)
    ]
    return markdown_table([*heading, "AUROC − MAP's"], rows)


def targets_table(tables: Tables) -> str:
    """Return every target with its figures and whether it was met."""
    rows = [[escaped(t.text), t.figures, f"**{t.verdict}**"] for t in judge(task_figures(tables))]
    return markdown_table(["target", "figures", "verdict"], rows, left={0, 1, 2})


def cost_table(tables: Tables) -> str:
    """Return what each method took: median over tasks and seeds of its seconds and of the bytes it stores."""
    rows = []
    for m in tables["methods"].itertuples():
        scores = tables["scores"][tables["scores"].method == m.method]
        medians = (scores.seconds.median(), scores.size_bytes.median() / 1000)
        rows.append([escaped(m.title), escaped(m.family), *(f"{value:.1f}" for value in medians), len(scores)])
    return markdown_table(["method", "family", "seconds", "kB stored", "runs"], rows, left={0, 1})


def _inline(value: Any) -> str:
    """Return a JSON value as words: "available train 67349, test 872"; what is null is left out."""
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_inline(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return " of ".join(_inline(v) for v in value)
    return escaped(str(value))


#: What makes each text of the page, by the name of its markers.
TABLES: Mapping[str, Callable[[Tables], str]] = {
    "setup": setup_table,
    "targets": targets_table,
    "recommended": recommended_table,
    "figures": figures_table,
    "plots": lambda _: (
        f"![NLL against MAP](results/{NLL_PLOT})\n\n![reliability diagrams](results/{RELIABILITY_PLOT})\n"
    ),
    **{name: partial(metric_table, column=column, sign=sign) for name, (column, sign) in _METRICS.items()},
    "matrix": matrix_table,
    "cost": cost_table,
    "price": price_table,
    "conformal": conformal_table,
    "ensembles": ensembles_table,
    "orders": orders_table,
    "rankings": rankings_table,
    "approximation": lambda tables: approximation_table(tables["variants"]),
}
