"""One file a task with the answers of every unit: anybody can add a method and pair it with all others, untrained.

A file has for each training the adapter's log probabilities of the labelled rows and of the test rows, with their
labels; and for each draw the places of its labelled rows, and every method's log probabilities of the test rows.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks.evidence.calibrators import Calibrated, Fit
from benchmarks.evidence.given import Given, labelled_of
from benchmarks.evidence.methods import calibrated
from benchmarks.evidence.passes import Passes
from benchmarks.evidence.plan import Training
from benchmarks.evidence.scores import Answers, Record, Unit, scored
from laplora.errors import DataError
from laplora.experts.base import Outputs

#: The name of an added method in records.
ADDED = "added"


def packed(passes: Passes, answers: Mapping[int, Mapping[str, Answers]]) -> dict[str, torch.Tensor]:
    """Return the tensors of a training; what is only compared is float16.

    Args:
        answers: by draw and method.
    """
    of = passes.cell.training
    adapter, _ = passes.labelled("adapter")
    tensors = {
        "labelled": adapter.log_probs["adapter"].float(),
        "test": passes.test("adapter").log_probs["adapter"].float(),
        "labels": passes.labels().to(torch.uint8),
        "test_labels": passes.test_labels().to(torch.uint8),
    }
    for draw, methods in answers.items():
        tensors[f"{draw}"] = passes.places(draw).to(torch.int16)
        tensors |= {f"{draw}/{name}": one.test.half() for name, one in methods.items()}
    return {f"{of.task}/{of.base}/{of.budget}/{of.seed}/{name}": tensor for name, tensor in tensors.items()}


def added(method: Path, file: Path) -> list[Record]:
    """Return the records of a method of one's own beside those that a file has, by the rules of every other one.

    Args:
        method: a Python file with ``fit(log_probs, labels)``, as ``benchmarks.evidence.calibrators`` says it: it
            calibrates the adapter.

    Raises:
        DataError: a Python file without it or without log probabilities; a file that ``packed`` did not make.
    """
    fit = runpy.run_path(str(method)).get("fit")
    if not callable(fit):
        raise DataError(f"{method} has no function fit(log_probs, labels) that returns a function of log probabilities")

    def checked(log_probs: torch.Tensor, labels: torch.Tensor) -> Calibrated:
        calibrate = fit(log_probs, labels)

        def answers(asked: torch.Tensor) -> torch.Tensor:
            found = calibrate(asked)
            if found.shape != asked.shape or not bool((found.exp().sum(1) - 1).abs().lt(1e-3).all()):
                raise DataError(f"{method}: fit gave no log probabilities {tuple(asked.shape)} of rows that sum to one")
            return torch.as_tensor(found)

        return answers

    if found := [record for unit in _units(file) for record in unit.records(checked)]:
        return found
    raise DataError(f"{file} is no file of --pack")


@dataclass(frozen=True)
class _Packed:
    """One unit of a file; tensors as ``packed`` calls them, and by method the answers to the test rows."""

    unit: Unit
    tensors: Mapping[str, torch.Tensor]
    places: torch.Tensor
    answers: Mapping[str, torch.Tensor]

    def records(self, fit: Fit) -> list[Record]:
        labels, places = self.tensors["labels"].long(), self.places.long()
        train = Training(self.unit.task, self.unit.budget, self.unit.seed).train_rows
        outputs = [
            Outputs(torch.ones(logs.shape).bool(), {"adapter": logs.double()})
            for logs in (self.tensors["labelled"][places], self.tensors["test"])
        ]
        honest = torch.arange(len(places)) >= train
        known = labelled_of(labels[places], outputs[0].class_mask, honest, self.unit.seed)
        mine = calibrated(fit)(Given((), (), outputs[0], known, outputs[1], self.unit.seed))
        nothing = torch.full(outputs[0].class_mask.shape, torch.nan).double()
        theirs = {name: Answers(nothing, logs.double().log_softmax(1)) for name, logs in self.answers.items()}
        test = self.tensors["test_labels"].long()
        return scored(self.unit, {**theirs, ADDED: mine}, known.labels, test)[-1:]


def _units(file: Path) -> Iterator[_Packed]:
    with safe_open(file, framework="pt") as handle:
        names = set(handle.keys())
        for place in sorted(name.removesuffix("/labels") for name in names if name.endswith("/labels")):
            task, base, budget, seed = place.split("/")
            kept = {
                name: handle.get_tensor(f"{place}/{name}") for name in ("labelled", "test", "labels", "test_labels")
            }
            for draw in sorted(
                name for name in names if name.startswith(f"{place}/") and name.rpartition("/")[2].isdigit()
            ):
                answers = {n.rpartition("/")[2]: handle.get_tensor(n) for n in names if n.startswith(f"{draw}/")}
                unit = Unit(task, base, int(budget), int(seed), int(draw.rpartition("/")[2]))
                yield _Packed(unit, kept, handle.get_tensor(draw), answers)
