"""RESULTS.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.experts.cells import DEVELOPING, SEEDS
from benchmarks.experts.methods import METHODS
from benchmarks.experts.scores import REFERENCE, TARGET, Record
from training.report.markdown import markdown_table

PAGE = Path(__file__).parent / "RESULTS.md"
#: Records of each seed by method and task.
ByCell = Mapping[tuple[str, str], Sequence[Record]]
_HEAD = """# Experts alone and together

Written by `python -m benchmarks.experts` from results.json. SmolLM2-135M-Instruct on every task; 450 labels, of
CLINC150 1,500; 500 test rows; seeds {seeds} deal the labelled rows. These are the developing tasks: defaults were
chosen on them, so no figure here is a claim about a new task. Experts of the library, and their pools
(`laplora.pool`), are in bold. Two thirds of the labels train the adapter (LoRA of rank 8, 3 epochs), and the last third
calibrates and conditions it. All labels fit what stands on no adapter, and each of their rows is answered from folds
without it. Figures are means over seeds; the best of a task is in bold.

`logistic` is scikit-learn's `LogisticRegression`, whose strength five folds choose; states are those of the four layers
that `frozen` reads, side by side. MiniLM is all-MiniLM-L6-v2, which the library's `encoder` reads too. A letter means
something else in every question: ARC-Easy and OpenBookQA have no head on frozen states, embeddings or words. A trained
classification head reads CLINC150 and Banking77, and label tokens say nothing there. Laplace over the LoRA weights is
left out: its Jacobians cost more than everything else together ([the evidence study](../evidence/RESULTS.md) has it).
An empty cell was not measured, or cannot be.
"""
_AGAINST = """## NLL less the reference's, nats

Paired by test row. Twice the standard error of a difference, of its rows and of its seeds, is noise: what is beyond it
is in bold, and counted as better or worse.
"""
_ACCEPTED = f"""## Accepted at {TARGET:.0%}: share, and error among the accepted, per cent

Test rows whose entropy is at most the threshold that `laplora.decisions.review.fit_thresholds` sets (`empirical`) on
honest answers of labelled rows: a third of them with an adapter, all without. The error is that of all seeds' accepted
rows together.
"""
_SECONDS = """## Seconds of the fit

Processor seconds of one core: the labelled rows' passes, the fit, and the training of an adapter.
"""


def render(records: Sequence[Record]) -> str:
    """Return the page."""
    by_cell: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_cell.setdefault((record["method"], record["task"]), []).append(record)
    parts = [
        _HEAD.format(seeds=", ".join(map(str, SEEDS))),
        "## NLL, nats\n",
        _table(by_cell, "nll", "{:.3f}".format, min),
        _AGAINST,
        _against(by_cell),
        "## Accuracy\n",
        _table(by_cell, "accuracy", "{:.3f}".format, max),
        _ACCEPTED,
        _table(by_cell, "accepted", lambda share: f"{100 * share:.0f}", None),
        _SECONDS,
        _table(by_cell, "seconds", "{:.0f}".format, None),
        _missing(by_cell),
    ]
    return "\n".join(filter(None, parts))


def _table(by_cell: ByCell, figure: str, shown: Callable[[float], str], best: Callable[..., float] | None) -> str:
    """Return a table of methods by tasks, each figure the mean over seeds.

    Args:
        best: what the best figure of a task is by, which is then bold; None: none is.
    """
    means = {cell: _mean([record[figure] for record in of]) for cell, of in by_cell.items()}
    tasks = [task for task in DEVELOPING if any(task == of for _, of in means)]
    bests = {task: best(mean for (_, of), mean in means.items() if of == task) for task in tasks} if best else {}
    rows = []
    for name, method in METHODS.items():
        have = [task for task in tasks if (name, task) in means]
        if not have:
            continue
        cells = []
        for task in tasks:
            text = shown(means[name, task]) if task in have else ""
            if text and figure == "accepted":
                text += _error(by_cell[name, task])
            cells.append(f"**{text}**" if text and best and means[name, task] == bests[task] else text)
        shared = [task for task in have if (REFERENCE, task) in means]
        overall = (
            [shown(_mean([means[of, task] for task in shared])) for of in (name, REFERENCE)] if shared else [""] * 2
        )
        rows.append([method.title, *cells, *overall])
    return markdown_table(["", *tasks, "mean", "reference's"], rows)


def _against(by_cell: ByCell) -> str:
    """Return a table of the library's methods by tasks: differences to the reference; how many are better and worse."""
    tasks = [task for task in DEVELOPING if (REFERENCE, task) in by_cell]
    rows = []
    for name, method in ((name, of) for name, of in METHODS.items() if of.title.startswith("**")):
        cells, counts = [], {"better": 0, "tied": 0, "worse": 0}
        for task in tasks:
            some = [record for record in by_cell.get((name, task), ()) if "difference" in record]
            if not some:
                cells.append("")
                continue
            mean, verdict = compared(some)
            counts[verdict] += 1
            cells.append(f"{mean:+.3f}" if verdict == "tied" else f"**{mean:+.3f}**")
        if any(cells):
            rows.append([method.title, *cells, *map(str, counts.values())])
    return markdown_table(["", *tasks, "better", "tied", "worse"], rows)


def compared(records: Sequence[Record]) -> tuple[float, Literal["better", "tied", "worse"]]:
    """Return the mean difference of the NLL to the reference's over seeds, and what it is beyond noise."""
    each = [record["difference"] for record in records]
    mean, rows_error = _mean(each), _mean([record["difference_error"] for record in records])
    of_seeds = _mean([(one - mean) ** 2 for one in each]) / max(len(each) - 1, 1)
    if abs(mean) <= 2 * (rows_error**2 + of_seeds) ** 0.5:
        return mean, "tied"
    return mean, "better" if mean < 0 else "worse"


def error_among_accepted(records: Sequence[Record]) -> float | None:
    """Return the error among the accepted, of all seeds' accepted rows together; None where none is."""
    accepted = sum(record["accepted"] for record in records)
    wrong = sum(record["accepted"] * record["error"] for record in records if record["error"] is not None)
    return wrong / accepted if accepted else None


def _error(records: Sequence[Record]) -> str:
    """Return in brackets the error among the accepted, per cent."""
    error = error_among_accepted(records)
    return "" if error is None else f" ({100 * error:.1f})"


def _missing(by_cell: ByCell) -> str:
    """Return what has fewer seeds than all; nothing where every cell has them."""
    few: dict[tuple[int, str], list[str]] = {}
    for (method, task), records in by_cell.items():
        if len(records) < len(SEEDS):
            few.setdefault((len(records), task), []).append(method)
    if not few:
        return ""
    lines = [f"- {task}, {count} of {len(SEEDS)}: {', '.join(of)}." for (count, task), of in sorted(few.items())]
    return "## Cells with fewer seeds\n\n" + "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
