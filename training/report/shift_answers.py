"""What an artifact answers to a set of rows, by every predictive it carries, in the form that is kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from laplora.answers.prediction import Prediction
from laplora.decisions.uncertainty import FLAGS
from laplora.files import write_tensors
from laplora.predictor import Predictor
from laplora.prompts.examples import Example
from training.workspace.runtime import batches
from training.workspace.terminal import progress


@dataclass(frozen=True)
class PredictiveRows:
    """One predictive's answers.

    Attributes:
        probs: (rows, classes) float64, 0 at impossible classes.
        score: (rows,) what its review rule compares, nats.
        flags: (rows, flags) bool, in the order of ``laplora.decisions.uncertainty.FLAGS``.
        review: (rows,) bool, true where the decision is to ask a person.
        epistemic: (rows,) nats; None where the predictive has one set of weights only.
    """

    probs: torch.Tensor
    score: torch.Tensor
    flags: torch.Tensor
    review: torch.Tensor
    epistemic: torch.Tensor | None = None


@dataclass(frozen=True)
class SetAnswers:
    """An artifact's answers to one set.

    Attributes:
        labels: (rows,) int64, -1 where there is no answer; label_mass: (rows,) float64; truncated: (rows,) bool.
        predictives: by name; with ``fast`` also ``fast_served``, in which ``laplace`` has answered deferred rows.
        deferral: (rows, 2) bool, whether mode ``fast`` leaves the row to ``laplace``, and whether as unfamiliar; None
            without ``fast``.
        familiarity: (rows,) float64; None where nothing says it.
    """

    labels: torch.Tensor
    label_mass: torch.Tensor
    truncated: torch.Tensor
    predictives: dict[str, PredictiveRows]
    deferral: torch.Tensor | None = None
    familiarity: torch.Tensor | None = None


def answer_set(predictor: Predictor, examples: Sequence[Example], batch_size: int, title: str) -> SetAnswers:
    """Return the answers to every row, in the rows' order."""
    rows = [predictor.encode(example.fields, truncate=True) for example in examples]
    answers: dict[str, dict[int, Prediction]] = {}
    deferral = torch.zeros(len(rows), 2, dtype=torch.bool)
    for index in progress(batches(rows, batch_size), title):
        predictions, deferred = predictor.predict_each([rows[i] for i in index])
        if deferred:
            places = torch.tensor(index)
            deferral[places[deferred.rows], 0] = deferral[places[deferred.unfamiliar], 1] = True
        for name, of_name in predictions.items():
            answers.setdefault(name, {}).update(zip(index, of_name, strict=True))
    ordered: dict[str, list[Prediction]] = {}
    for predictive, of_row in answers.items():
        ordered[predictive] = [of_row[i] for i in range(len(rows))]
        if predictive == "fast":
            exact = answers["laplace"]
            ordered["fast_served"] = [exact[i] if deferral[i, 0] else of_row[i] for i in range(len(rows))]
    first = next(iter(ordered.values()))
    familiar = [p.familiarity for p in first if p.familiarity is not None]
    return SetAnswers(
        labels=torch.tensor([example.label for example in examples]),
        label_mass=torch.tensor([p.label_mass for p in first], dtype=torch.float64),
        truncated=torch.tensor([p.truncated for p in first]),
        predictives={name: _stacked(of_name, predictor.class_count) for name, of_name in ordered.items()},
        deferral=deferral if "fast" in answers else None,
        familiarity=torch.tensor(familiar, dtype=torch.float64) if familiar else None,
    )


def _stacked(predictions: Sequence[Prediction], classes: int) -> PredictiveRows:
    probs = torch.zeros(len(predictions), classes, dtype=torch.float64)
    for i, prediction in enumerate(predictions):
        probs[i, : len(prediction.probs)] = torch.tensor(prediction.probs, dtype=torch.float64)
    epistemic = [p.epistemic for p in predictions if p.epistemic is not None]
    return PredictiveRows(
        probs=probs,
        score=torch.tensor([p.score for p in predictions], dtype=torch.float64),
        flags=torch.tensor([[flag in p.flags for flag in FLAGS] for p in predictions]),
        review=torch.tensor([p.decision == "review" for p in predictions]),
        epistemic=torch.tensor(epistemic, dtype=torch.float64) if epistemic else None,
    )


def write_answers(path: Path, answers: SetAnswers, made_from: str) -> None:
    """Write a set's answers, with the digest of what they were made from."""
    columns = {k: v for k, v in vars(answers).items() if isinstance(v, torch.Tensor)}
    for name, rows in answers.predictives.items():
        columns |= {f"{column}.{name}": v for column, v in vars(rows).items() if v is not None}
    # A file sorts its tensors: the predictives' order is kept beside them.
    write_tensors(path, columns, {"made_from": made_from, "predictives": " ".join(answers.predictives)})


def read_answers(path: Path, made_from: str) -> SetAnswers | None:
    """Return a set's answers, or None where there are none made from that, or a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("made_from") != made_from:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        columns: dict[str, dict[str, torch.Tensor]] = {name: {} for name in ("", *metadata["predictives"].split())}
        for place, tensor in tensors.items():
            column, _, name = place.partition(".")
            columns[name][column] = tensor
        of_set = columns.pop("")
        return SetAnswers(predictives={name: PredictiveRows(**of_rows) for name, of_rows in columns.items()}, **of_set)
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
