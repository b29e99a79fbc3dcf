"""A row's numbers as the database has them: float64 in base64, so that an upload can be told what its answers take.

For each method, a labelled row has the parts of the metrics (``laplora.metrics.scores.RowScores``), or where several
labels may be right their probabilities and scores.
"""

from __future__ import annotations

import json
import math
import struct
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from laplora.answers.evaluation import MethodRow, method_scores
from laplora.answers.labels import LabelNames, Truth
from service.jobs.store.records import ScoredRow, compact

if TYPE_CHECKING:
    from laplora.metrics.scores import RowScores

#: The fields of an answer by label, and those that are not kept: the label's text may be a part of the prompt, and the
#: reason follows from the rest.
_BY_LABEL = ("map_probs", "probs", "probs_std")
_NOT_KEPT = ("label_text", "decision_reason", "calibrated_probs", "logit_mean", "logit_variance")
#: Most bytes of an answer but for its labels and what it has by label.
_REST_BYTES = 600


def packed(values: Sequence[float]) -> str:
    """Return float64 values as text."""
    return b64encode(struct.pack(f"<{len(values)}d", *values)).decode()


def unpacked(text: str) -> tuple[float, ...]:
    """Return what was ``packed``."""
    content = b64decode(text)
    return struct.unpack(f"<{len(content) // 8}d", content)


def kept_answer(written: Mapping[str, Any]) -> str:
    """Return what is kept of an answer (``laplora.answers.written``), JSON."""
    kept = {name: value for name, value in written.items() if name not in _NOT_KEPT}
    return compact(kept | {name: packed(list(kept[name].values())) for name in _BY_LABEL if kept[name] is not None})


def read_answer(text: str, labels: Sequence[str]) -> dict[str, Any]:
    """Return what ``kept_answer`` was given, but for what is not kept."""
    answer: dict[str, Any] = json.loads(text)
    for name in _BY_LABEL:
        if answer[name] is not None:
            answer[name] = dict(zip(labels, unpacked(answer[name]), strict=False))
    return answer


def kept_rows(rows: Sequence[ScoredRow], labels: LabelNames) -> list[ScoredRow]:
    """Return fresh rows with what is kept of their numbers: those of each method, in the order of their names."""
    labelled = [row for row in rows if row.truth is not None]
    kept: dict[int, list[float]] = {row.row: [] for row in labelled}
    for name in sorted(labelled[0].methods) if labelled else ():
        numbers = _numbers([row.methods[name] for row in labelled], [row.truth for row in labelled], labels)
        for row, values in zip(labelled, numbers, strict=True):
            kept[row.row] += values
    return [row._replace(methods=packed(kept[row.row]) if row.row in kept else {}) for row in rows]


def _numbers(rows: Sequence[MethodRow], truths: Sequence[Truth | None], labels: LabelNames) -> list[list[float]]:
    """Return what is kept of labelled rows by one method; NaN where there is no score."""
    import torch

    if labels.several:
        none = [math.nan] * len(labels.names)
        return [[*probs, *(scores if isinstance(scores, Sequence) else none)] for probs, scores in rows]
    scores = method_scores(rows, [truth for truth in truths if truth is not None], labels)
    numbers: list[list[float]] = torch.stack(tuple(scores), 1).tolist()
    return numbers


def scores_of(rows: Sequence[ScoredRow], method: str, methods: Collection[str], labels: LabelNames) -> RowScores:
    """Return what a method's metrics are made of, of labelled rows from the database that these methods are kept of."""
    import torch

    from laplora.metrics.scores import RowScores

    truths = [row.truth for row in rows if row.truth is not None]
    count = len(labels.names)
    width = 2 * count if labels.several else len(RowScores._fields)
    place = width * sorted(methods).index(method)
    numbers = [unpacked(row.methods)[place : place + width] for row in rows]
    if labels.several:
        split = [(values[:count], None if math.isnan(values[count]) else values[count:]) for values in numbers]
        return method_scores(split, truths, labels)
    return RowScores(*torch.tensor(numbers, dtype=torch.float64).T.contiguous())


def row_bytes(labels: LabelNames, methods: Collection[str], *, keep_rows: bool) -> dict[bool, int]:
    """Return how many bytes of the database a row takes at most, with a label (True) and without one.

    Args:
        methods: that a row with a label is measured by.
    """
    count = len(labels.names)
    sizes = [len(compact(name)) + 1 for name in labels.names]
    # In the prediction set, and of those that are present.
    names = max(sizes) + sum(sizes) * (2 if labels.several else 1)
    numbers = len(methods) * (2 * count if labels.several else 5)
    truth = len(compact([*range(count)]) if labels.several else str(count))
    measured = len(compact(packed([0.0] * numbers))) + truth
    answer = _REST_BYTES + len(_BY_LABEL) * len(packed([0.0] * count)) + names if keep_rows else 0
    return {False: taken_bytes(len("null{}") + answer), True: taken_bytes(measured + answer)}


def taken_bytes(size: int) -> int:
    """Return how many bytes of a database's file a row of so many takes: SQLite has what is long in whole pages."""
    return 16 + size + size // 8 if size <= 1000 else 1000 + 4096 * math.ceil((size - 489) / 4092)
