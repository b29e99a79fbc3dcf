"""RESULTS.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.experts.cells import DEVELOPMENT, SEEDS
from benchmarks.experts.methods import METHODS
from benchmarks.experts.scores import REFERENCE, TARGET, Record
from training.report.markdown import markdown_table

PAGE = Path(__file__).parent / "RESULTS.md"
#: Records of each seed by method and task.
ByCell = Mapping[tuple[str, str], Sequence[Record]]
_HEAD = """# Experts alone and together

`python -m benchmarks.experts` writes this page from results.json. SmolLM2-135M-Instruct answers every task, with
450 labels (CLINC150 1,500) and 500 test rows; figures are means over seeds {seeds}. These are development tasks:
defaults were chosen on them, so no figure here is a claim about a new task. The library's experts and pools
(`laplora.pool`) are in bold. Two thirds of the labels train the adapter (LoRA of rank 8, 3 epochs). The last third
calibrates and conditions it. Methods without an adapter use all labels, by cross-fitting.

`logistic` is scikit-learn's `LogisticRegression` with a strength chosen by five folds, on the states that `frozen`
reads, on all-MiniLM-L6-v2 embeddings or on TF-IDF. ARC-Easy and OpenBookQA have no such heads, because a letter
means something else in every question. CLINC150 and Banking77 are read by a trained classification head. An empty
cell was not measured.
"""
_AGAINST = """## NLL less the reference's, nats

Differences are paired by test row. A difference beyond twice its standard error (of rows and of seeds) is in bold,
and counts as better or worse.
"""
_ACCEPTED = f"""## Accepted at {TARGET:.0%}: share, and error among the accepted, per cent

A test row is accepted if its entropy is at most the threshold of `laplora.decisions.review.fit_thresholds`
(`empirical`). The threshold is fitted on cross-fitted answers of labelled rows. The error is that of all seeds'
accepted rows together.
"""
_MEANS = """## Means over tasks

Seconds are processor seconds of one core for a fit: passes over the labelled rows, the fit, and the adapter's
training.
"""


def cells_of(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Return the records of all seeds by method and task."""
    by_cell: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_cell.setdefault((record["method"], record["task"]), []).append(record)
    return by_cell


def render(records: Sequence[Record]) -> str:
    by_cell = cells_of(records)
    parts = [
        _HEAD.format(seeds=", ".join(map(str, SEEDS))),
        "## NLL, nats\n",
        _table(by_cell, "nll", "{:.3f}".format, min),
        _AGAINST,
        _against(by_cell),
        _ACCEPTED,
        _table(by_cell, "accepted", lambda share: f"{100 * share:.0f}", None),
        _MEANS,
        _means(by_cell),
        _missing(by_cell),
    ]
    return "\n".join(filter(None, parts))


def _table(by_cell: ByCell, figure: str, shown: Callable[[float], str], best: Callable[..., float] | None) -> str:
    """Return a table of methods by tasks, each figure the mean over seeds.

    Args:
        best: what the best figure of a task is by, which is then bold; None: none is.
    """
    means = {cell: _mean([record[figure] for record in of]) for cell, of in by_cell.items()}
    tasks = [task for task in DEVELOPMENT if any(task == of for _, of in means)]
    bests = {task: best(mean for (_, of), mean in means.items() if of == task) for task in tasks} if best else {}
    rows = []
    for name, method in METHODS.items():
        have = [task for task in tasks if (name, task) in means]
        if not have or (figure == "accepted" and not method.title.startswith(("**", "adapter"))):
            continue  # the rivals' accepted shares are among the means
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


def _means(by_cell: ByCell) -> str:
    """Return each method's accuracy and accepted share, beside the reference's on the same tasks, and its seconds."""
    rows = []
    for name, method in METHODS.items():
        tasks = [task for of, task in by_cell if of == name and (REFERENCE, task) in by_cell]
        if not tasks:
            continue
        means = [
            _mean([_mean([record[figure] for record in by_cell[of, task]]) for task in tasks])
            for figure in ("accuracy", "accepted", "seconds")
            for of in ((name,) if figure == "seconds" else (name, REFERENCE))
        ]
        rows.append([method.title, *"{:.3f} {:.3f} {:.0%} {:.0%} {:.0f}".format(*means).split()])
    return markdown_table(["", "accuracy", "reference's", "accepted", "reference's", "seconds"], rows)


def _against(by_cell: ByCell) -> str:
    """Return a table of the library's methods by tasks: differences to the reference; how many are better and worse."""
    tasks = [task for task in DEVELOPMENT if (REFERENCE, task) in by_cell]
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
