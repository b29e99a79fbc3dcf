"""Every method's answers for one unit, kept beside its arrays: a method that is there already is not run again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.evidence.methods import METHODS, Answer, Method
from benchmarks.evidence.outputs import read_outputs
from benchmarks.evidence.plan import Unit
from benchmarks.evidence.versions import has_version
from laplora.files import write_tensors
from laplora.linearised import entropy


@dataclass(frozen=True)
class Answers:
    """One method's answers.

    Attributes:
        probs: (draws, test, classes) float64; score: (draws, test) float64, higher meaning less trusted.
    """

    method: Method
    probs: torch.Tensor
    score: torch.Tensor


def answer(unit: Unit, say: Callable[[str], None]) -> None:
    """Run every method that a gathered unit has no answers of, and keep them."""
    missing = [method for method in METHODS.values() if not _answered(unit, method)]
    if not missing:
        return
    outputs = read_outputs(unit)
    for method in missing:
        if method.applies(outputs):
            started = time.monotonic()
            answers = [method.answer(outputs, draw) for draw in range(method.draws)]
            write_tensors(_path(unit, method.name), _tensors(answers), {"version": str(method.version)})
            say(f"{unit} {method.name}: {time.monotonic() - started:.1f} s")


def read_answers(unit: Unit) -> Iterator[Answers]:
    """Yield the answers that a unit has, in the methods' order."""
    for method in METHODS.values():
        if _answered(unit, method):
            stored = load_file(_path(unit, method.name))
            probs = stored["probs"].double()
            yield Answers(method, probs / probs.sum(2, keepdim=True), stored["score"].double())


def read_labels(unit: Unit) -> torch.Tensor:
    """Return the labels of the test rows, (test,) int64."""
    return load_file(unit.folder / "outputs.safetensors")["test.labels"]


def _tensors(answers: list[Answer]) -> dict[str, torch.Tensor]:
    scores = [entropy(a.probs) if a.score is None else a.score for a in answers]
    return {"probs": torch.stack([a.probs for a in answers]).float(), "score": torch.stack(scores).double()}


def _answered(unit: Unit, method: Method) -> bool:
    """Return whether there are answers of the method as it is now."""
    return has_version(_path(unit, method.name), method.version)


def _path(unit: Unit, method: str) -> Path:
    return unit.folder / "answers" / f"{method}.safetensors"
