"""The training targets of an adapter: rows with their labels, or for a student its teacher's probabilities.

The teacher is asked once: its answers stay in the student's folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from laplora.answers.prediction import Prediction
from laplora.classifier import batches
from laplora.features.store import rows_digest
from laplora.files.atomic import write_json
from laplora.fitting.learning import LoadedClassifier
from laplora.linearised import class_probs, class_weighted_log_likelihood
from laplora.predictive.lora_weights import in_place, lora_parameters, read_weights
from laplora.predictor import Predictor
from laplora.prompts.examples import Example
from laplora.prompts.rows import EncodedRow
from training.workspace.run import Run
from training.workspace.stores import FolderStore
from training.workspace.student import Student
from training.workspace.terminal import progress, say

#: A row with what it is trained towards: () int64 a label, or (classes,) float32 probabilities.
Target = tuple[EncodedRow, torch.Tensor]
#: The file about the training in a student's folder, beside the adapter.
STUDENT = "student.json"
#: Batches of the teacher's answers that are kept together: what a stopped run does again at most.
_KEPT_BATCHES = 64


def target_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    class_mask: torch.Tensor,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean over rows of the cross-entropy between targets and the softmax over possible classes, nats.

    Args:
        logits: (rows, classes); class_mask: (rows, classes) bool.
        targets: (rows,) int64 labels, or (rows, classes) probabilities, 0 at impossible classes. For probabilities, the
            gradient is that of the Kullback-Leibler divergence from them (Hinton et al., arXiv 1503.02531).
        class_weights: (classes,), of labels: the mean is then of minus ``class_weighted_log_likelihood``.
    """
    if class_weights is not None:
        return -class_weighted_log_likelihood(logits, targets, class_mask, class_weights).mean().float()
    possible = logits.masked_fill(~class_mask, -torch.inf)
    if not targets.is_floating_point():
        return F.cross_entropy(possible, targets)
    log_probs = possible.log_softmax(1).masked_fill(~class_mask, 0)  # 0 times minus infinity is no number
    return -(targets.to(log_probs.dtype) * log_probs).sum(1).mean()


def training_targets(run: Run) -> list[Target]:
    """Return the rows that a run is trained on, with their targets; of a student the inputs after the training rows.

    Raises:
        ArtifactError, ModelError: a teacher that cannot be loaded; NonFiniteError: one that answers no numbers.
    """
    targets = labelled_targets(run, run.splits.train)
    return targets if run.student is None else _taught(run, run.student, targets)


def labelled_targets(run: Run, examples: Sequence[Example]) -> list[Target]:
    """Return examples as a run encodes them, with their labels."""
    labels = [torch.tensor(example.label) for example in examples]
    return list(zip(run.encode(examples), labels, strict=True))


def _taught(run: Run, student: Student, labelled: Sequence[Target]) -> list[Target]:
    """Return the training rows, their targets mixed with the teacher's answers, and the inputs that it knows."""
    weight, classes = student.label_weight, run.class_count
    asked = run.splits.train if weight < 1 else ()
    probs, unfamiliar = _teacher_answers(run, student, (*asked, *student.inputs))
    mixed = []
    for number, (row, label) in enumerate(labelled):
        target = F.one_hot(label, classes).float()
        mixed.append((row, target.lerp(probs[number], 1 - weight) if asked else target))
    known = (~unfamiliar[len(asked) :]).nonzero()[:, 0].tolist()
    rows = run.encode([student.inputs[i] for i in known])
    left_out = len(student.inputs) - len(known)
    write_json(run.folder / STUDENT, student.record() | {"unfamiliar": left_out})
    if student.teacher.manifest.familiarity is None:
        say(f"the teacher has no familiarity: all {len(known)} inputs are learned from, also what is none of its kind")
    else:
        say(f"{len(known)} unlabelled inputs; {left_out} are left out, which the teacher flags as unfamiliar")
    return [*mixed, *((row, probs[len(asked) + i]) for row, i in zip(rows, known, strict=True))]


def _teacher_answers(run: Run, student: Student, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the teacher's (rows, classes) float32 probabilities, and (rows,) bool which rows it flags as unfamiliar.

    They are kept in the run's folder, part by part.
    """
    store = FolderStore(run.folder / "teacher", f"{student.answers_digest}/{rows_digest(examples)}")
    parts: dict[int, dict[str, torch.Tensor]] = {}
    size = run.config.laplace.batch_size * _KEPT_BATCHES
    starts = range(0, len(examples), size)
    for start in starts:
        if kept := store.read(f"answers-{start}"):
            parts[start] = kept[0]
    if missing := [start for start in starts if start not in parts]:
        beside = f", averaged with {len(student.folds)} adapters of folds" if student.folds else ""
        say(f"the teacher {student.teacher.name} answers by {student.predictive}{beside}")
        teacher = Predictor.load(
            student.teacher.path, device=run.place, dequantize=run.config.base.dequantize, progress=say
        )
        for start in missing:
            part = examples[start : start + size]
            title = f"teacher's answers {start + 1} to {start + len(part)} of {len(examples)}"
            parts[start] = _answers(teacher, student, part, run.config.laplace.batch_size, title)
            store.write(f"answers-{start}", parts[start], {})
    probs, unfamiliar = (torch.cat([parts[start][name] for start in starts]) for name in ("probs", "unfamiliar"))
    return probs, unfamiliar


def _answers(
    teacher: Predictor, student: Student, examples: Sequence[Example], batch_size: int, title: str
) -> dict[str, torch.Tensor]:
    rows = [teacher.encode(example.fields, truncate=True) for example in examples]
    probs = torch.zeros(len(rows), teacher.class_count)
    unfamiliar = torch.zeros(len(rows), dtype=torch.bool)
    classifier = LoadedClassifier(teacher)
    folds = [read_weights(classifier.model, folder) for folder in student.folds]
    temperature = teacher.artifact.manifest.predictives[student.predictive].temperature
    for index in progress(batches(rows, batch_size), title):
        some = [rows[i] for i in index]
        answers: list[Prediction] = teacher.predict(some, student.predictive)
        for i, answer in zip(index, answers, strict=True):
            probs[i, : len(answer.labels)] = torch.tensor(answer.arrays.probs)
            unfamiliar[i] = "unfamiliar" in answer.flags
        if folds:
            batch = classifier.collate(some)
            total = probs[index].double()
            for weights in folds:
                with torch.no_grad(), in_place(lora_parameters(classifier.model), weights):
                    logits = classifier.readout.scores(classifier.model, batch).logits.double().cpu()
                total += class_probs(logits / temperature, batch.class_mask.cpu())
            probs[index] = (total / (1 + len(folds))).float()
    return {"probs": probs, "unfamiliar": unfamiliar}


def student_record(run: Run) -> dict[str, Any]:
    """Return what an artifact records under ``data`` of a trained student; nothing of other runs."""
    return {"student": json.loads((run.folder / STUDENT).read_text(encoding="utf-8"))} if run.student else {}
