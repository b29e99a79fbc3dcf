"""From a method's answers to the small figures that are committed in results.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from benchmarks.experts.cells import Cell
from benchmarks.experts.methods import Answers
from laplora.decisions.review import fit_thresholds
from laplora.files.atomic import write_tensors, write_whole
from laplora.linearised import PosteriorPredictive, entropy
from laplora.metrics.groups import mean_and_error
from laplora.metrics.scores import row_nll

#: The error rate that a user states.
TARGET = 0.05
#: The method that others are compared with, row by row.
REFERENCE = "temperature"
RESULTS = Path(__file__).parent / "results.json"
Record = Mapping[str, Any]


def keep(path: Path, answers: Answers, labels: torch.Tensor, test: torch.Tensor, seconds: float) -> None:
    """Write a method's answers beside the labels of their rows, and the seconds of its fit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"held_out": answers.held_out, "test": answers.test, "labels": labels, "test_labels": test}
    if answers.entropies is not None:
        tensors["entropies"] = answers.entropies
    write_tensors(path, tensors, {"seconds": f"{seconds:.2f}"})


def scored(cell: Cell, paths: Mapping[str, Path]) -> list[Record]:
    """Return the figures of a cell's methods, of those whose answers are kept, each beside the reference's."""
    kept = {}
    for name, path in paths.items():
        if path.is_file():
            with safe_open(path, framework="pt") as handle:
                kept[name] = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
                kept[name]["seconds"] = float((handle.metadata() or {})["seconds"])
    scores = []
    for name, of in kept.items():
        answers = Answers(of["held_out"], of["test"], of.get("entropies"))
        record = score(cell, name, answers, of["seconds"], of["labels"], of["test_labels"])
        if REFERENCE in kept:
            losses = [row_nll(one["test"].exp(), one["test_labels"]) for one in (of, kept[REFERENCE])]
            mean, error = mean_and_error(losses[0] - losses[1])
            record = {**record, "difference": float(f"{mean:.4g}"), "difference_error": float(f"{error:.4g}")}
        scores.append(record)
    return scores


def score(
    cell: Cell, method: str, answers: Answers, seconds: float, labels: torch.Tensor, test: torch.Tensor
) -> Record:
    """Return the figures of a method: the threshold is the product's, on honest answers alone.

    Args:
        labels: (labelled,) int64; test: (test,) int64, likewise of the test rows.
    """
    honest = ~answers.held_out.isnan().any(1)
    probs, labels = answers.held_out[honest].exp(), labels[honest]
    compared = entropy(probs) if answers.entropies is None else answers.entropies[honest]
    held_out, mass = PosteriorPredictive(probs, torch.zeros_like(probs), compared), torch.ones(len(labels)).double()
    # The one that is called "map" is compared by its own entropies, whatever these say.
    names = ("map", "answer")
    entropies = dict.fromkeys(names, compared)
    rules = fit_thresholds(dict.fromkeys(names, held_out), labels, mass, target_risk=TARGET, entropies=entropies)
    threshold = rules["answer"].review.threshold
    of_test = answers.test.exp()
    wrong = of_test.argmax(1) != test
    accepted = entropy(of_test) <= (-1 if threshold is None else threshold)
    figures = {
        "held_out_nll": row_nll(probs, labels).mean(),
        "nll": row_nll(of_test, test).mean(),
        "accuracy": 1 - wrong.double().mean(),
        "accepted": accepted.double().mean(),
        "error": wrong[accepted].double().mean() if accepted.any() else None,
        "seconds": seconds,
    }
    place = {"task": cell.name, "seed": cell.seed, "method": method, "honest": len(labels)}
    return place | {name: None if v is None else float(f"{float(v):.4g}") for name, v in figures.items()}


def read(path: Path) -> list[Record]:
    """Return figures; none where there is no file."""
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def write(records: Iterable[Record], path: Path) -> None:
    """Write the figures, a line each."""
    lines = ",\n".join(json.dumps(record, separators=(",", ":"), allow_nan=False) for record in records)
    write_whole(path, f"[\n{lines}\n]\n")
