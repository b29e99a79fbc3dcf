"""The study's tables in docs/results.md, made from the published JSON files alone.

Each stands between ``<!-- study:begin NAME -->`` and ``<!-- study:end NAME -->``, so that a test can compare them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.study.pages.approximation_table import approximation_table
from benchmarks.study.pages.markdown import escaped, markdown_table, over_seeds
from benchmarks.study.pages.plots import NLL_PLOT, RELIABILITY_PLOT
from benchmarks.study.pages.side_tables import side_tables
from benchmarks.study.results.approximation_records import read_approximation
from benchmarks.study.results.records import REFERENCES, Published, Reference, Score, ordered_methods, read_published
from benchmarks.study.results.targets import judge, outcome, shown, task_figures
from laplora.errors import DataError

_MARKERS = re.compile(r"<!-- study:begin (\w+) -->\n(.*?)<!-- study:end \1 -->", flags=re.DOTALL)
_UNPUBLISHED = (
    "No figures are published yet: `python -m benchmarks.study` measures them, and\n"
    "`python -m benchmarks.study --publish` puts them here.\n"
)
_SYMBOLS = {"win": "+", "tie": "=", "loss": "−"}

#: Metric tables: name -> (value, +1 where higher is better and -1 where lower is).
_METRICS: dict[str, tuple[Callable[[Score], float | None], int]] = {
    "nll": (lambda s: s.nll, -1),
    "ece": (lambda s: s.ece, -1),
    "accuracy": (lambda s: s.accuracy, 1),
    "brier": (lambda s: s.brier, -1),
    "auroc": (lambda s: s.auroc_error, 1),
}


def study_tables(published: Published) -> dict[str, str]:
    """Return every table by the name of its markers, as Markdown; one sentence where nothing is published yet."""
    tables = {
        "setup": setup_table(published),
        "targets": targets_table(published),
        "recommended": recommended_table(published),
        "figures": figures_table(published),
        "plots": f"![NLL against MAP](results/{NLL_PLOT})\n\n![reliability diagrams](results/{RELIABILITY_PLOT})\n",
        **{name: metric_table(published, name) for name in _METRICS},
        "matrix": matrix_table(published),
        "cost": cost_table(published),
        **side_tables(published),
    }
    return tables if published.scores else dict.fromkeys(tables, "") | {"setup": _UNPUBLISHED}


def page_tables(folder: Path) -> dict[str, str]:
    """Return every table of the page by the name of its markers, from the JSON files of a folder.

    Raises:
        DataError: files that are damaged or incomplete.
    """
    return study_tables(read_published(folder)) | {"approximation": approximation_table(read_approximation(folder))}


def insert_tables(page: str, tables: dict[str, str]) -> str:
    """Return the page with what stands between each table's markers replaced.

    Raises:
        DataError: markers of a table missing, more than one pair of it, or markers of a table that there is not.
    """
    found = [match[1] for match in _MARKERS.finditer(page)]
    if sorted(found) != sorted(tables):
        raise DataError(
            f"the page must hold one pair of markers for each of {sorted(tables)}, got {sorted(found)}: "
            "write <!-- study:begin NAME --> and <!-- study:end NAME --> on lines of their own"
        )
    return _MARKERS.sub(
        lambda m: f"<!-- study:begin {m[1]} -->\n{_spaced(tables[m[1]])}<!-- study:end {m[1]} -->", page
    )


def setup_table(published: Published) -> str:
    """Return base model, sizes, steps, caps and seeds of every task, then the machines and versions."""
    setup = published.setup
    lines = [["task", "base", "classes", "train", "calibration", "test", "steps", "seeds", "caps", "digest"]]
    for task, own in setup.tasks.items():
        classes = own.classes if isinstance(own.classes, int) else len(own.classes)
        sizes = (classes, own.train_rows, own.calibration_rows, own.rows, own.steps)
        seeds = ", ".join(map(str, own.seeds))
        lines.append(
            [
                task,
                _base(own.configuration),
                *map(str, sizes),
                seeds,
                _inline(own.capped) or "none",
                f"`{own.digest[:8]}`",
            ]
        )
    machines = sorted({_inline(h) for own in setup.tasks.values() for h in own.hardware})
    versions = sorted({_inline(v) for own in setup.tasks.values() for v in own.versions})
    table = markdown_table(lines, left={0, 1, 7, 8, 9})
    return f"{table}\nHardware: {'; or '.join(machines)}. Versions: {'; or '.join(versions)}.\n"


def metric_table(published: Published, name: str) -> str:
    """Return one metric per method and task: mean ± standard deviation over seeds, the best mean bold.

    The last row is what each seed recommends. Only methods with all of a task's seeds can be its best; where all are
    equal as printed, none is.
    """
    value, sign = _METRICS[name]
    tasks, methods = list(published.setup.tasks), ordered_methods(published)
    rows: dict[str, list[str]] = {m: [escaped(published.setup.methods[m].title)] for m in methods} | {
        "": ["*recommended*"]
    }
    for task in tasks:
        own, seeds = [s for s in published.scores if s.task == task], len(published.setup.tasks[task].seeds)
        cells = {m: over_seeds(value(s) for s in own if s.method == m) for m in methods}
        cells[""] = over_seeds(value(s) for s in own if s.recommended)
        whole = {m: round(sign * c.mean, 3) for m, c in cells.items() if m and c.mean is not None and c.seeds == seeds}
        for method, cell in cells.items():
            text = cell.text(seeds)
            best = len(set(whole.values())) > 1 and whole.get(method) == max(whole.values())
            rows[method].append(f"**{text}**" if best else text)
    return markdown_table([["method", *tasks], *rows.values()])


def matrix_table(published: Published) -> str:
    """Return which methods win (+), tie (=) or lose (−) in NLL: against MAP, then against temperature scaling.

    A win or a loss is a paired 95 % interval that excludes 0.
    """
    ends = {(c.task, c.method, c.against): outcome(c.low, c.high) for c in published.comparisons}
    tasks = list(published.setup.tasks)
    lines = [["method", *tasks, "MAP: won / tied / lost", "temperature: won / tied / lost"]]
    for method in ordered_methods(published):
        row = [escaped(published.setup.methods[method].title)]
        for task in tasks:
            pair = [ends.get((task, method, against)) for against in REFERENCES]
            row.append(" ".join(_SYMBOLS[end] if end else "·" for end in pair))
        row += [_totals(ends, method, against) for against in REFERENCES]
        lines.append(row)
    return markdown_table(lines)


def recommended_table(published: Published) -> str:
    """Return what each task's seeds recommend and its NLL against MAP's and temperature scaling's."""
    lines = [["task", "seeds", "recommended", "NLL", "MAP NLL", "against MAP", "", "against temperature", ""]]
    for task in task_figures(published):
        names = {m: task.recommended.count(m) for m in sorted(set(task.recommended))}
        chosen = [
            escaped(published.setup.methods[m].title) + (f" ({n} of {task.seeds})" if n < task.seeds else "")
            for m, n in names.items()
        ]
        row = [task.task, str(task.seeds), ", ".join(chosen), f"{task.recommended_nll:.3f}", f"{task.map_nll:.3f}"]
        for bounds in (task.against_map, task.against_temperature):
            row += ["-", "-"] if bounds is None else [shown(bounds), outcome(bounds[1], bounds[2])]
        lines.append(row)
    return markdown_table(lines, left={0, 2, 6, 8})


def figures_table(published: Published) -> str:
    """Return, per task, the figures behind the targets that are not about NLL."""
    heading = ["task", "test rows", "MAP ECE", "MAP confidence − accuracy", "overconfident", "ECE", "accuracy − MAP's"]
    lines = [[*heading, "AUROC − MAP's"]]
    for t in task_figures(published):
        lead = "-" if t.auroc_lead is None else f"{t.auroc_lead:+.3f}"
        row = [t.task, str(t.rows), f"{t.map_ece:.3f}", shown(t.gap), "yes" if t.overconfident else "no"]
        lines.append([*row, f"{t.recommended_ece:.3f}", f"{100 * t.accuracy_change:+.1f} points", lead])
    return markdown_table(lines)


def targets_table(published: Published) -> str:
    """Return every target with its figures and whether it was met."""
    rows = [[escaped(t.text), t.figures, f"**{t.verdict}**"] for t in judge(task_figures(published))]
    return markdown_table([["target", "figures", "verdict"], *rows], left={0, 1, 2})


def cost_table(published: Published) -> str:
    """Return what each method took: median over tasks and seeds of its seconds and of the bytes it stores."""
    lines = [["method", "family", "seconds", "kB stored", "runs"]]
    for method in ordered_methods(published):
        own = [d for d in published.details.methods if d.method == method]
        setup = published.setup.methods[method]
        seconds = [d.seconds for d in own if d.seconds is not None]
        sizes = [d.size_bytes / 1000 for d in own if d.size_bytes is not None]
        medians = [f"{median(seconds):.1f}" if seconds else "-", f"{median(sizes):.1f}" if sizes else "-"]
        lines.append([escaped(setup.title), escaped(setup.family), *medians, str(len(own))])
    return markdown_table(lines, left={0, 1})


def _base(configuration: Any) -> str:
    """Return "smollm2-135m-instruct, nf4", or a dash where a task's configuration names no base model."""
    base = configuration.get("base") if isinstance(configuration, dict) else None
    return escaped(f"{base['model']}, {base.get('quantization', 'none')}") if base else "-"


def _totals(ends: dict[tuple[str, str, Reference], Any], method: str, against: Reference) -> str:
    own = [end for (_, m, a), end in ends.items() if m == method and a == against]
    return " / ".join(str(own.count(kind)) for kind in ("win", "tie", "loss")) if own else "·"


def _inline(value: Any) -> str:
    """Return a JSON value as words: "available train 67349, test 872"; what is null is left out."""
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_inline(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return " of ".join(_inline(v) for v in value)
    return escaped(str(value))


def _spaced(text: str) -> str:
    """Return a table with an empty line on either side, which Markdown needs after a comment."""
    return f"\n{text}\n" if text else ""
