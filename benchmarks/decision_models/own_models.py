"""Models of the study (``benchmarks.evidence``) as if they were remote: only their probabilities are seen.

``tuned`` is an adapter that was trained on 300 rows of the task; ``zero-shot`` is its base, which saw none. A user has
other rows of the same task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.decision_models.tickets import Rows
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.given import texts
from benchmarks.evidence.passes import Passes, Source
from benchmarks.evidence.plan import BUDGETED, LABELS, Training
from laplora.prompts.examples import Example

#: Tasks: those of the study that have several numbers of labels.
TASKS = BUDGETED
#: Models by name: the source of the study's passes, and what its answer is called there.
MODELS: dict[str, tuple[Source, str]] = {"tuned": ("adapter", "adapter"), "zero-shot": ("frozen", "zero_shot")}


def own_rows(task: str, model: str, seed: int, data: Path, runs: Path) -> Rows:
    """Return a task's rows with a model's probabilities of each label; fitted ones trained no model.

    Args:
        seed: of the study: rows that the model was trained on, and its start.
        data: folder with the data sets; runs: the study's folder, where its passes are kept.
    """
    cell = Cell(Training(task, LABELS, seed), runs)
    passes = Passes(cell, cell.rows(data), lambda line: print(f"{cell} {line}", flush=True))
    source, name = MODELS[model]
    known, trained = passes.labelled(source)[0].log_probs[name], len(passes.rows.train)  # type: ignore[index]
    words = cell.task.labels
    question = {"type": "choice", "instructions": cell.task.template.text, "criteria": dict.fromkeys(words)}
    test = passes.test(source).log_probs[name]  # type: ignore[index]
    return Rows(question, _rows(passes.rows.pool, known[trained:], words), _rows(passes.rows.test, test, words))


def _rows(rows: Sequence[Example], logs: torch.Tensor, words: Sequence[str]) -> list[Mapping[str, Any]]:
    return [
        {"state": text, "label": words[row.label], "model_probs": dict(zip(words, probs, strict=True))}
        for text, row, probs in zip(texts(rows), rows, logs.exp().tolist(), strict=True)
    ]
