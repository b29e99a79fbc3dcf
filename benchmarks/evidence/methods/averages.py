"""Averages over forward passes: members around one adapter, and adapters that were trained on all labels; and what one
adapter learned of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from benchmarks.evidence.methods.base import Answer, Answers
from benchmarks.evidence.methods.recalibration import temperature
from benchmarks.evidence.outputs import Outputs
from benchmarks.evidence.versions import has_members
from laplora.linearised import contrast_mean
from laplora.predictive.kinds import fit_predictive_temperature


@dataclass(frozen=True)
class Stored:
    """Arrays of a file of the unit."""

    arrays: dict[str, torch.Tensor]


def has(name: str) -> Callable[[Outputs], bool]:
    """Return what tells whether a unit has a file of that name."""
    return lambda outputs: (outputs.unit.folder / f"{name}.safetensors").is_file()


def _read(outputs: Outputs, name: str) -> dict[str, torch.Tensor]:
    if name not in outputs.memo:
        arrays = load_file(outputs.unit.folder / f"{name}.safetensors")
        outputs.memo[name] = Stored({key: a.double() if a.is_floating_point() else a for key, a in arrays.items()})
    found = outputs.memo[name]
    assert isinstance(found, Stored)
    return found.arrays


def has_kind(kind: str) -> Callable[[Outputs], bool]:
    """Return what tells whether a unit has members of a kind as they are drawn now."""
    return lambda outputs: has_members(outputs.unit.folder, kind)


def members(kind: str) -> Answers:
    """Return the method that averages the members' probabilities; it needs no calibration rows."""

    def answer(outputs: Outputs, draw: int) -> Answer:
        return Answer(_read(outputs, f"members.{kind}")["test"].softmax(2).mean(0))

    return answer


def members_temperature(kind: str) -> Answers:
    """Return the same with one temperature, fitted on the mixture's likelihood of the draw's rows."""

    def answer(outputs: Outputs, draw: int) -> Answer:
        stored, rows = _read(outputs, f"members.{kind}"), outputs.calibration(draw)
        means = contrast_mean(stored["pool"][:, outputs.draws[draw]])
        t = fit_predictive_temperature(means, rows.labels, rows.class_mask)
        return Answer((stored["test"] / t).softmax(2).mean(0))

    return answer


def retrained(outputs: Outputs, draw: int) -> Answer:
    """Answer by one adapter trained on all labels; its temperature is of further labels, which no other method has."""
    stored = _read(outputs, "retrained")
    labels = outputs.pool.labels[stored["places"]]
    return Answer(temperature(stored["further"], labels)(stored["test"]))


def retrained_folds(outputs: Outputs, draw: int) -> Answer:
    """Answer by the same adapter; its temperature is that of the folds' held-out logits."""
    stored = _read(outputs, "folds")
    return Answer(temperature(stored["out_of_fold"], stored["labels"])(_read(outputs, "retrained")["test"]))


def cross_fitted(outputs: Outputs, draw: int) -> Answer:
    """Answer by the average of the folds' adapters, each at the temperature of the held-out logits."""
    stored = _read(outputs, "folds")
    at = temperature(stored["out_of_fold"], stored["labels"])
    return Answer(torch.stack([at(logits) for logits in stored["members"]]).mean(0))


def student(outputs: Outputs, draw: int) -> Answer:
    """Answer by the adapter that learned the folds' average from rows without labels; it has no temperature."""
    return Answer(_read(outputs, "student")["test"].softmax(1))
