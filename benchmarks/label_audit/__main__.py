"""Turns labels, and counts how many of those an audit finds: ``python -m benchmarks.label_audit``.

    python -m benchmarks.label_audit --data FOLDER   # a quarter of an hour of two cores; a stopped run continues
    python -m benchmarks.label_audit --tables        # measures nothing: RESULTS.md again

FOLDER holds the data sets of ``benchmarks.evidence``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from benchmarks.evidence.rows_read_once import LABELLED, NAMES, SEEDS, TEST, ReadTask, Record, command
from laplora.execution.progress import Silent
from laplora.fitting.fitted_heads import FittedHeads, fit_heads
from laplora.selection.label_audit import audit_labels, text_of
from laplora.settings import FitSettings
from training.report.markdown import markdown_table

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "results.json", FOLDER / "RESULTS.md"
TURNED, FIRST = (0.05, 0.1), 20
#: Rows that a person looks at before the last fit.
LOOKED_AT = 45
_HEAD = f"""# Labels that are wrong

`python -m benchmarks.label_audit` writes this page. A share of {LABELLED} labels is turned to another one by chance. An
audit lists labels to look at. The tables say how many of the first {FIRST} were turned, per cent, as means over three
seeds. By chance it is the share of turned labels. Labels that were wrong in the data before count as right. A list of
fewer than {FIRST} counts the missing ones as right too. Seeds draw labelled and test rows from one pool of
{LABELLED + TEST} rows, so they are not independent. Near-copies are not grouped here.

- **laplora**: `posterior.audit()`, by the answers of the heads that serve, each without its row's fold.
- *same answers, cleanlab*: `find_label_issues` of cleanlab with its defaults, on the same answers.
- *MiniLM, cleanlab*: the same on logistic regression on embeddings, cross-validated.

*Listed* is how many labels the audit lists, and how many of these were turned. NLL is that of {TEST} test rows, nats:
with the turned labels; after the true labels were put back in the first {LOOKED_AT} of
the audit's order, where the least probable labels follow the listed ones; and with no label turned.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    units = [{"seed": seed, "turned": share} for seed in SEEDS for share in TURNED]
    command(arguments, __doc__, FOLDER, units, measured, page)


def measured(task: ReadTask, seed: int, turned: float) -> Record:
    """Return the figures of one draw of labelled rows and of turned labels, a share of them."""
    drawn, draw = task.drawn(seed), random.Random(f"{seed}/{turned}")
    right = drawn.labelled.labels
    given = right.clone()
    for row in draw.sample(range(LABELLED), round(turned * LABELLED)):
        given[row] = draw.choice([label for label in range(task.classifier.class_count) if label != int(right[row])])
    wrong = given != right

    def fit(labels: torch.Tensor) -> tuple[FittedHeads, float]:
        settings, some = FitSettings(seed=seed), replace(drawn.labelled, labels=labels)
        heads = fit_heads(task.names, task.outputs.take(drawn.places), some, settings, Silent())
        logs = heads.answering[heads.choice.name].log_probs(task.outputs.take(drawn.test))
        return heads, float(torch.nn.functional.nll_loss(logs, drawn.truth))

    heads, before = fit(given)
    probs = heads.answering[heads.choice.name].held_out.exp()
    found = audit_labels(probs, given, [text_of(row.fields) for row in drawn.rows])
    embeddings = task.embeddings(drawn.places)
    alone = cross_val_predict(LogisticRegression(max_iter=1000), embeddings, given.numpy(), method="predict_proba")
    looked_at = given.clone()
    behind = [row for row in found.own.argsort(stable=True).tolist() if row not in found.unlikely]
    first = torch.tensor([*found.unlikely, *behind][:LOOKED_AT])
    looked_at[first] = right[first]
    return {
        "laplora": _precision(wrong, found.unlikely),
        "same": _precision(wrong, _issues(given, probs.numpy())),
        "encoder": _precision(wrong, _issues(given, alone)),
        "listed": len(found.unlikely),
        "listed_turned": int(wrong[list(found.unlikely)].sum()),
        "before": before,
        "after": fit(looked_at)[1],
        "clean": fit(right)[1],
    }


def _issues(labels: torch.Tensor, probs: np.ndarray[Any, Any]) -> Sequence[int]:
    found = find_label_issues(labels.numpy(), probs, return_indices_ranked_by="self_confidence")
    return [int(place) for place in found]


def _precision(turned: torch.Tensor, listed: Sequence[int]) -> float:
    """Return the share of turned labels among the first; of a shorter list, the missing ones count as right."""
    return int(turned[list(listed[:FIRST])].sum()) / FIRST


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of the records."""
    return _HEAD + "".join(_tables(records))


def _tables(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for share in TURNED:
        rows = []
        for name in NAMES:
            some = [one for one in records if (one["task"], one["turned"]) == (name, share)]
            if some:
                mean = {key: fmean(one[key] for one in some) for key in some[0] if key not in ("task", "turned")}
                found = (f"{100 * mean[key]:.0f}" for key in ("laplora", "same", "encoder"))
                listed = f"{mean['listed']:.0f}, {mean['listed_turned']:.0f} turned"
                rows.append([name, *found, listed, *(f"{mean[key]:.3f}" for key in ("before", "after", "clean"))])
        heading = ("task", "**laplora**", "same answers, cleanlab", "MiniLM, cleanlab", "listed")
        yield f"\n## {100 * share:.0f} % of labels turned: {round(share * LABELLED)} of {LABELLED}\n\n"
        yield markdown_table([*heading, "NLL, turned", "looked at", "none turned"], rows)


if __name__ == "__main__":
    main()
