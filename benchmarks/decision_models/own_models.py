"""Models of the study (``benchmarks.evidence``) as if they were remote: only their probabilities are seen.

``tuned`` is an adapter that was trained on 300 rows of the task; ``zero-shot`` is its base, which saw none. A user has
other rows of the same task. Their probabilities are kept in own_models.safetensors, so that nothing is trained here.

    python -m benchmarks.decision_models.own_models FOLDER RUNS   # writes that file, from the study's passes in RUNS
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.decision_models.tickets import Rows
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.given import texts
from benchmarks.evidence.passes import Passes, Source, notes_of
from benchmarks.evidence.plan import BUDGETED, LABELS, SEEDS, Training
from laplora.files.atomic import write_tensors
from laplora.prompts.examples import Example

KEPT = Path(__file__).parent / "own_models.safetensors"
#: Tasks: those of the study that have several numbers of labels.
TASKS = BUDGETED
#: Models by name: the source of the study's passes, and what its answer is called there.
MODELS: dict[str, tuple[Source, str]] = {"tuned": ("adapter", "adapter"), "zero-shot": ("frozen", "zero_shot")}


def own_rows(task: str, model: str, seed: int, data: Path) -> Rows:
    """Return a task's rows with a model's probabilities of each label; fitted ones trained no model.

    Args:
        seed: of the study: rows that the model was trained on, and its start.
        data: folder with the data sets.

    Raises:
        DataError: the probabilities are of other rows.
    """
    passes = _passes(task, seed, data, Path())
    dealt, words = passes.rows, passes.cell.task.labels
    question = {
        "type": "choice",
        "instructions": passes.cell.task.template.text,
        "criteria": dict.fromkeys(words),
    }
    notes_of(KEPT, passes.made_from((*dealt.pool, *dealt.test)), f"{task}/{seed}")
    logs = load_file(KEPT)[f"{task}/{seed}/{model}"].float().log_softmax(1)
    return Rows(question, _rows(dealt.pool, logs, words), _rows(dealt.test, logs[len(dealt.pool) :], words))


def keep(data: Path, runs: Path) -> None:
    """Write the probabilities of all models, from the study's passes in a folder; missing ones are made."""
    tensors, notes = dict[str, torch.Tensor](), dict[str, str]()
    for task in TASKS:
        for seed in SEEDS:
            passes = _passes(task, seed, data, runs)
            notes[f"{task}/{seed}"] = passes.made_from((*passes.rows.pool, *passes.rows.test))
            for model, (source, name) in MODELS.items():
                parts = [passes.labelled(source)[0].log_probs, passes.test(source).log_probs]  # type: ignore[index]
                pool, test = (part[name] for part in parts)  # type: ignore[index]
                tensors[f"{task}/{seed}/{model}"] = torch.cat([pool[len(passes.rows.train) :], test]).half()
    write_tensors(KEPT, tensors, notes)


def _passes(task: str, seed: int, data: Path, runs: Path) -> Passes:
    cell = Cell(Training(task, LABELS, seed), runs)
    return Passes(cell, cell.rows(data), lambda line: print(f"{cell} {line}", flush=True))


def _rows(rows: Sequence[Example], logs: torch.Tensor, words: Sequence[str]) -> list[Mapping[str, Any]]:
    return [
        {"state": text, "label": words[row.label], "model_probs": dict(zip(words, probs, strict=True))}
        for text, row, probs in zip(texts(rows), rows, logs.exp().tolist(), strict=False)
    ]


if __name__ == "__main__":
    keep(*map(Path, sys.argv[1:]))
