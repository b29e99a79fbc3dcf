"""What a method is: a name, a price, and a function from a unit's arrays to probabilities of its test rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.evidence.outputs import Outputs
from benchmarks.evidence.plan import DRAWS


@dataclass(frozen=True)
class Answer:
    """A method's answer for every test row.

    Attributes:
        probs: (test, classes) float64, rows sum to 1.
        score: (test,), higher meaning less trusted; None: the entropy of ``probs``.
    """

    probs: torch.Tensor
    score: torch.Tensor | None = None


#: From arrays and the number of a calibration draw. It sees labels of training rows and of that draw alone.
Answers = Callable[[Outputs, int], Answer]


def anywhere(_: Outputs) -> bool:
    """Return True: of methods that need nothing special."""
    return True


@dataclass(frozen=True)
class Method:
    """One way to turn a trained model and calibration labels into probabilities.

    Attributes:
        forwards: cost of an answer by the number of classes, in forward passes of the model.
        applies: whether a unit has what the method needs.
        draws: of the calibration draws that it answers for, the first so many.
        reviews: the method whose answers it gives under another score of its own; None: none.
        version: raised whenever its answers change: those of another version are not read, and made again.
    """

    name: str
    title: str
    forwards: Callable[[int], float]
    answer: Answers
    applies: Callable[[Outputs], bool] = anywhere
    draws: int = DRAWS
    reviews: str | None = None
    version: int = 1


def one_pass(_: int) -> float:
    """Return 1: a forward pass and nothing else."""
    return 1.0


def jacobian_passes(classes: int) -> float:
    """Return the cost of a row's contrast Jacobians: a forward pass, and as much for each contrast."""
    return float(classes)


def passes(count: int) -> Callable[[int], float]:
    """Return the cost of so many forward passes, whatever the classes."""
    return lambda _: float(count)


def two_classes(outputs: Outputs) -> bool:
    """Return whether a unit has two labels."""
    return outputs.classes == 2
