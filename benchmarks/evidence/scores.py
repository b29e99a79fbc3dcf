"""From the answers of a unit's methods to the small figures that are committed in docs/results/evidence.json.

A unit is a task, a base, a budget of labels, a seed and a draw of calibration rows. Every method of a unit answers the
same test rows, so methods are compared row by row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from laplora.decisions.review import accept_threshold
from laplora.files.atomic import write_whole
from laplora.linearised import entropy
from laplora.metrics.groups import mean_and_error
from laplora.metrics.noise import calibrated_ece
from laplora.metrics.scores import evaluate_probs, row_nll

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "evidence.json"
#: The error rates that a user states, and how a record's keys end that are of each.
TARGETS = {0.05: "", 0.10: "_10"}
#: Above every entropy, nats: rows that are unlike the labelled ones rank last.
_LAST = 100.0
#: The method that all are compared with, and the one that the product serves by default.
REFERENCE, SERVED = "temperature", "served"
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """The place of one comparison; ``budget``: labels that a user has."""

    task: str
    base: str
    budget: int
    seed: int
    draw: int


@dataclass(frozen=True)
class Answers:
    """A method's answers, and their price.

    Attributes:
        held_out: (labelled, classes) float64 log probabilities that the row's label had no part in; NaN in rows where
            the method has none.
        test: (test, classes) float64 log probabilities of the test rows.
        entropies: (labelled,) nats, what a threshold is set on; None: the entropies of ``held_out``.
        test_entropies: (test,) nats, what is compared with it; None: the entropies of ``test``.
        seconds: of the fit; passes: through a model, for one answer.
    """

    held_out: torch.Tensor
    test: torch.Tensor
    entropies: torch.Tensor | None = None
    test_entropies: torch.Tensor | None = None
    seconds: float = 0.0
    passes: float | None = None

    def of_test(self, rows: torch.Tensor) -> Answers:
        """Return the answers to some test rows, by a mask (test,) bool."""
        entropies = None if self.test_entropies is None else self.test_entropies[rows]
        return replace(self, test=self.test[rows], test_entropies=entropies)


def scored(unit: Unit, answers: Mapping[str, Answers], labels: torch.Tensor, test_labels: torch.Tensor) -> list[Record]:
    """Return the record of each method, in the order of ``answers``, numbers of 4 significant digits.

    ``vs_temperature`` and ``vs_served`` are the mean difference of the NLL to this method's, nats, and its standard
    error over test rows; None where that method has no answers. ``vs_frequent`` is the accuracy less that of the test
    rows' most frequent class, and its standard error. ``accepted`` and ``accepted_error`` are at the first of
    ``TARGETS``, with ``_10`` at the second; an error is None where nothing is accepted. ``unlike`` is the share of the
    test rows that go to a person as unlike the labelled ones, None where nothing says so. ``left`` is the NLL of
    ``held_out`` as a share of the labels' entropy.

    Args:
        answers: by method; labels: (labelled,) int64; test_labels: (test,) int64.

    Raises:
        DataError: shapes that do not fit, or test answers that are no probabilities.
        NonFiniteError: NaN in a test answer.
    """
    losses = {name: row_nll(one.test.exp(), test_labels) for name, one in answers.items()}
    frequent = (test_labels == test_labels.mode().values).double()
    records = list[Record]()
    for name, one in answers.items():
        figures: dict[str, Any] = _figures(one, labels, test_labels)
        for other in (REFERENCE, SERVED):
            figures[f"vs_{other}"] = mean_and_error(losses[name] - losses[other]) if other in losses else None
        hits = (one.test.argmax(1) == test_labels).double()
        figures["vs_frequent"] = mean_and_error(hits - frequent)
        records.append({**asdict(unit), "method": name, **{key: _short(value) for key, value in figures.items()}})
    return records


def _figures(one: Answers, labels: torch.Tensor, test_labels: torch.Tensor) -> dict[str, Any]:
    """Return the figures of a method alone: thresholds are the product's, set on honest answers."""
    honest = ~one.held_out.isnan().any(1)
    if one.entropies is not None:  # a pool answers rows too that its thresholds are not set on
        honest &= ~one.entropies.isnan()
    held_out, test = one.held_out[honest].exp(), one.test.exp()
    compared = entropy(held_out) if one.entropies is None else one.entropies[honest]
    of_test = entropy(test) if one.test_entropies is None else one.test_entropies
    wrong, of_held_out = test.argmax(1) != test_labels, held_out.argmax(1) != labels[honest]
    accepted = dict[str, float | None]()
    for target, end in TARGETS.items():
        threshold = accept_threshold(compared, of_held_out, target) if honest.any() else None
        rows = of_test <= (-1 if threshold is None else threshold)
        accepted[f"accepted{end}"] = float(rows.double().mean())
        accepted[f"accepted_error{end}"] = float(wrong[rows].double().mean()) if rows.any() else None
    unlike = None if one.test_entropies is None else float(of_test.isinf().double().mean())
    left = row_nll(held_out, labels[honest]).mean() / entropy(labels.bincount()[None].double() / len(labels))
    quality = evaluate_probs(test, test_labels, of_test.clamp(max=_LAST), resamples=0)
    return {
        "honest": int(honest.sum()),
        "left": float(left) if honest.any() else None,
        **{name: getattr(quality, name) for name in ("nll", "accuracy", "brier", "ece", "aurc")},
        "ece_perfect": calibrated_ece(test.amax(1)).mean,
        **{**accepted, "unlike": unlike, "seconds": one.seconds, "forwards": 1 if one.passes is None else one.passes},
    }


def _short(value: Any) -> Any:
    """Return a figure, or each of several, with 4 significant digits."""
    if isinstance(value, list | tuple):
        return [_short(part) for part in value]
    number = None if value is None else float(f"{value:.4g}")
    return int(number) if number is not None and number.is_integer() else number


def read(path: Path = RESULTS) -> list[Record]:
    """Return the records; none where there is no file."""
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def write(records: Iterable[Record], path: Path = RESULTS) -> None:
    """Write the records, a line each."""
    lines = ",\n".join(json.dumps(record, separators=(",", ":"), allow_nan=False) for record in records)
    write_whole(path, f"[\n{lines}\n]\n")
