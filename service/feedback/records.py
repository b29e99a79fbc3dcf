"""What the feedback room keeps and reports: plain records, which know no store, no HTTP and no prompt."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from laplora.metrics.drift import Drift

if TYPE_CHECKING:
    import torch

Signal = Literal["epistemic", "confidence", "score"]
Baseline = Literal["calibration", "calibration_quantile", "activation"]
#: One artifact, by digest, and one predictive.
SeriesKey = tuple[str, str]


@dataclass(slots=True, eq=False)
class Kept:
    """One answered prediction.

    Attributes:
        series: which artifact and predictive answered.
        caller: whom the answer went to.
        answered: ``clock`` seconds.
        labels: the possible labels.
        numbers: float64, ``map_probs`` and then ``probs``, in the labels' order; see ``probabilities``.
        prediction_set: bit k is set where label k is in it.
        score: the predictive's review score, nats.
        target_risk: that the decision was made for.
        label: place of the true one, -1 until it is told.
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

    Attributes:
        rows: of the evaluation that the metrics are from, on the test split.
        accuracy, nll, ece, brier, auroc_error: as of ``laplora.metrics.scores``.
        coverage: the level that the prediction sets state.
        calibration_rows: that fixed the sets' threshold.
        scores: (calibration rows,) float64, the predictive's review scores.
        scores_rank: the signals that these scores are, or order rows as.
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
    epistemic_above: tuple[float, int] | None = None


@dataclass(frozen=True)
class Watched:
    """One figure, the limit that chance alone rarely passes, and its reference; None where there is none."""

    value: float | None
    limit: float | None = None
    reference: float | None = None


@dataclass(frozen=True)
class FlagFigure:
    """How often labelled predictions with one flag were wrong."""

    rows: int
    error_rate: float


@dataclass(frozen=True)
class Figures:
    """Figures of labelled predictions.

    Attributes:
        nll: its limit is the highest within chance of the reference, whose noise is taken to be that of as many such
            rows.
        ece: its limit is the highest within chance of a calibrated model's, and of the reference's where that is worse.
        ece_expected: what a calibrated model measures on these confidences, above 0.
        auroc_error: how well the review score ranks the mistakes.
        coverage: of the prediction sets; the limit is the lowest within chance of the stated level.
        accepted: rows that the server decided to accept.
        accepted_risk: their error rate; the reference is the mean one that they were accepted for.
        map_nll: of MAP on the same rows.
        map_gain: map_nll - nll, above 0 where the served predictive is better; the limit is the lowest within chance
            of none.
        flags: by flag.
    """

    rows: int
    accuracy: Watched
    nll: Watched
    ece: Watched
    ece_expected: float
    brier: Watched
    auroc_error: Watched
    coverage: Watched
    accepted: int
    accepted_risk: Watched
    map_nll: float
    map_gain: Watched
    flags: Mapping[str, FlagFigure]


@dataclass(frozen=True)
class DriftFigure(Drift):
    """One signal of recent answers against one baseline."""

    signal: Signal
    reference: Baseline


@dataclass(frozen=True)
class Report:
    """One series at one moment.

    Attributes:
        baseline: what the artifact records.
        predictions: answered in all; recent: of them in the window; labelled: of them in their window.
        accepted_share: of the recent answers; labelled_accepted_share: of the labelled ones. Where the two differ, the
            labelled predictions are not a fair sample of all.
        figures: None while nothing is labelled.
    """

    artifact: str
    digest: str
    predictive: str
    baseline: Reference
    predictions: int
    recent: int
    labelled: int
    accepted_share: float | None
    labelled_accepted_share: float | None
    figures: Figures | None
    drift: tuple[DriftFigure, ...]

    @property
    def flags(self) -> Mapping[str, FlagFigure]:
        """By flag, the labelled predictions that had it."""
        return {} if self.figures is None else self.figures.flags
