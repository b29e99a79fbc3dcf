"""Adds, merges and splits labels of heads: ``python -m benchmarks.label_changes --data FOLDER``, or ``--tables``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from benchmarks.evidence.rows_read_once import LABELLED, SEEDS, TEST, ReadTask, Record, command
from laplora.artifact.label_changes import LabelChanges, Relabelling
from laplora.decisions.review import accept_threshold
from laplora.execution.progress import Silent
from laplora.fitting.fitted_heads import FittedHeads, fit_heads
from laplora.fitting.relabelling import fit_under
from laplora.head.folds import fold_numbers
from laplora.linearised import entropy
from laplora.settings import FitSettings
from training.report.markdown import markdown_table

NAMES, ROWS, RISK = ("snips", "ag_news", "trec", "sentiment"), (10, 30), 0.05
METHODS = {"laplora": "**laplora**", "fit": "fit", "encoder": "MiniLM"}
CASES = [*(f"add {rows}" for rows in ROWS), "merge", *(f"split {rows}" for rows in ROWS)]
_HEAD = f"""# Labels that change

`python -m benchmarks.label_changes` writes this page. Heads are fitted on {LABELLED} labelled rows, and their labels
change as `laplora labels` changes them: one is added with 10 or 30 rows, where the fit had none of it; two are merged,
and split again with 10 or 30 rows each. They are labels with 40 rows or more, others for each seed. A cell has the NLL
on {TEST} test rows, nats; the accuracy, per cent; and the share accepted at a target risk of {100 * RISK:g} %, with the
error rate of these, both per cent. Figures are means over seeds, as many as the last column has, of one pool of rows;
error rates are all errors among what all seeds accept. The rule for the rows of a split label was chosen on one draw of
trec, where it is no new evidence.

A new label with 10 or 30 rows is much rarer in the fit than in the test. Thresholds suit the former, so more than 5 %
of what is accepted may be wrong: 30 rows did not cure that on trec and sentiment.

- **laplora**: the change. Rows of a split label stay with probabilities of its parts, by a head on the given rows.
  These probabilities also draw what counts as right where thresholds are set.
- *fit*: heads fitted from scratch on the rows that have one certain label: of a split they never see its other rows.
- *MiniLM*: logistic regression on embeddings of these rows, its penalty chosen by the NLL of five folds.

*Seconds* of a processor leave out reading the given rows. *Worse*: answers to rows whose label stays got worse.

"""


def measured(task: ReadTask, seed: int) -> Record:
    """Return the figures of one draw, by case."""
    draw, settings, names = task.drawn(seed), FitSettings(seed=seed), task.classifier.labels
    right, truth, every, found = draw.labelled.labels, draw.truth, torch.arange(LABELLED), Record()
    one, other = (torch.bincount(right) >= 40).nonzero()[:, 0].roll(-seed)[:2].sort().values.tolist()
    parts, both = [names[one], names[other]], "both"

    def fitted(rows: torch.Tensor, labels: torch.Tensor, classes: int) -> FittedHeads:
        some, mask = draw.labelled.take(rows), torch.ones(len(rows), classes, dtype=torch.bool)
        folds = fold_numbers(len(rows), settings.calibration.folds, seed, some.groups)
        some = replace(some, labels=labels, class_mask=mask, folds=folds)
        outputs = replace(task.outputs.take(draw.places[rows]), class_mask=mask, log_probs={})
        return fit_heads(task.names, outputs, some, settings, Silent())

    def changed(case: str, start: FittedHeads, before: Sequence[str], changes: LabelChanges, *rows: Any) -> Any:
        to, given, same = Relabelling.of(changes, before), rows[-1], torch.cat(rows)
        final = torch.tensor([to.after.index(name if name in to.after else both) for name in names])
        labels, answers, mask = final[right[same]], final[truth], torch.ones(TEST, len(to.after), dtype=torch.bool)
        test = replace(task.outputs.take(draw.test), class_mask=mask)

        def of_heads(heads: FittedHeads) -> list[float]:
            limit = heads.predictives[heads.choice.name].thresholds.review.threshold
            return _figures(heads.answering[heads.choice.name].log_probs(test).exp(), answers, limit)

        come = task.outputs.take(draw.places[given]), final[right[given]], draw.labelled.groups[given]
        known: Any = (start.choice.name, start.answering[start.choice.name].held_out)
        begun = time.process_time()
        new, _, compared = fit_under(start.kept_rows(), known, to, come if len(given) else None, settings, Silent())
        of = found[case] = {"seconds": time.process_time() - begun, "worse": compared.worse}
        x, y, tried = task.embeddings(draw.places[same]), labels.numpy(), list[Any]()
        for penalty in (1, 10, 100):
            rival = LogisticRegression(C=penalty, max_iter=1000)
            held_out = torch.from_numpy(cross_val_predict(rival, x, y, method="predict_proba"))
            limit = accept_threshold(entropy(held_out), held_out.argmax(1) != labels, RISK)
            tried.append((_figures(held_out, labels, None)[0], penalty, rival, limit))
        *_, rival, limit = min(tried)
        alone = torch.from_numpy(rival.fit(x, y).predict_proba(task.embeddings(draw.test)))
        of |= {"laplora": of_heads(new), "encoder": _figures(alone, answers, limit)}
        of["fit"] = of_heads(fitted(same, labels, len(to.after)))
        return new, to.after

    rest, others = every[right != one], [name for name in names if name != names[one]]
    start = fitted(rest, right[rest] - (right[rest] > one).long(), len(others))
    for rows in ROWS:
        changed(f"add {rows}", start, others, LabelChanges(add=parts[:1]), rest, every[right == one][:rows])
    merged = changed(
        "merge", fitted(every, right, len(names)), names, LabelChanges(merge={both: parts}), every, every[:0]
    )
    pair = every[(right == one) | (right == other)]
    for rows in ROWS:
        given = torch.cat([every[right == label][:rows] for label in (one, other)])
        changed(f"split {rows}", *merged, LabelChanges(split={both: parts}), every[~torch.isin(every, pair)], given)
    return found


def _figures(probs: torch.Tensor, truth: torch.Tensor, limit: float | None) -> list[float]:
    """Return NLL, accuracy, share accepted up to a limit of the entropy, and the error rate of these; of none 0."""
    accepted, wrong = entropy(probs) <= (-1.0 if limit is None else limit), (probs.argmax(1) != truth).double()
    nll = torch.nn.functional.nll_loss(probs.clamp_min(1e-6).log(), truth)
    errors = wrong[accepted].sum() / accepted.sum().clamp_min(1)
    return torch.stack([nll, 1 - wrong.mean(), accepted.double().mean(), errors]).tolist()


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of the records."""
    rows = list[list[Any]]()
    for case, task in product(CASES, NAMES):
        if some := [one[case] for one in records if one["task"] == task]:
            row: list[Any] = [case, task]
            for method in METHODS:
                nll, right, accepted, _ = map(fmean, zip(*(one[method] for one in some), strict=True))
                errors = fmean(one[method][2] * one[method][3] for one in some)
                rate = f"{100 * errors / accepted:.1f}" if accepted else "-"
                row.append(f"{nll:.3f}; {100 * right:.0f}; {100 * accepted:.0f} ({rate})")
            seconds, worse = (sum(one[name] for one in some) for name in ("seconds", "worse"))
            rows.append([*row, f"{seconds / len(some):.1f}", f"{worse} of {len(some)}"])
    return _HEAD + markdown_table(["change", "task", *METHODS.values(), "seconds", "worse"], rows)


if __name__ == "__main__":
    command(None, __doc__, Path(__file__).parent, [{"seed": seed} for seed in SEEDS], measured, page, NAMES)
