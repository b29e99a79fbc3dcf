"""What the feedback room keeps and reports: plain records, which know no store and no prompt."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.http.schemas.feedback import SeriesOut, Signal

if TYPE_CHECKING:
    import torch

#: One artifact, by digest, and one predictive.
SeriesKey = tuple[str, str]


@dataclass(slots=True, eq=False)
class Kept:
    """One answered prediction.

    Attributes:
        answered: ``clock`` seconds.
        labels: the possible labels.
        numbers: float64, ``map_probs`` and then ``probs``, in the labels' order; see ``probabilities``.
        prediction_set: bit k is set where label k is in it.
        score: the predictive's review score, nats.
        several: whether several labels may be right.
        label: place of the true one; of several bit k is set where label k is right; -1 until it is told.
    """

    series: SeriesKey
    caller: str
    answered: float
    labels: tuple[str, ...]
    numbers: bytes
    prediction_set: int
    score: float
    target_risk: float
    accepted: bool
    flags: tuple[str, ...]
    several: bool = False
    label: int = -1

    def probabilities(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return ``map_probs`` and ``probs``."""
        numbers = struct.unpack(f"{2 * len(self.labels)}d", self.numbers)
        return numbers[: len(self.labels)], numbers[len(self.labels) :]


@dataclass(frozen=True)
class Answered:
    """What drift is looked for in: one number of each answer, or None."""

    epistemic: float | None
    confidence: float
    score: float
    accepted: bool


@dataclass(frozen=True)
class Reference:
    """What an artifact records of one predictive; None where it records nothing that can be compared.

    Rows are inputs, also where several labels may be right.

    Attributes:
        rows: of the evaluation on the test split, which accuracy to auroc_error are from.
        coverage: the level that the prediction sets state.
        calibration_rows: that fixed the sets' threshold.
        scores: (calibration rows,) float64, the predictive's review scores.
        scores_rank: the signals that these scores are, or order rows as.
        ranked_by_map: whether the review score is MAP's entropy, not that of the answer.
        epistemic_above: threshold, and how many calibration rows have a higher epistemic uncertainty.
    """

    rows: int = 0
    accuracy: float | None = None
    nll: float | None = None
    ece: float | None = None
    brier: float | None = None
    auroc_error: float | None = None
    coverage: float | None = None
    calibration_rows: int = 0
    scores: torch.Tensor | None = None
    scores_rank: tuple[Signal, ...] = ()
    ranked_by_map: bool = False
    epistemic_above: tuple[float, int] | None = None


@dataclass(frozen=True)
class Report:
    """One series at one moment, as GET /feedback shows it, beside what the artifact records."""

    shown: SeriesOut
    baseline: Reference
