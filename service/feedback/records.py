"""The records that feedback stores and reports: plain, without store, prompt or HTTP."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

#: One artifact, by digest, and one predictive.
SeriesKey = tuple[str, str]
#: The result of a label that was sent.
Outcome = Literal["recorded", "repeated", "corrected", "unknown"]
#: The numbers of an answer that drift is looked for in, and what recent ones are compared with.
Signal = Literal["epistemic", "confidence", "score"]
Baseline = Literal["calibration", "activation"]


@dataclass(slots=True, eq=False)
class StoredPrediction:
    """One answered prediction.

    Attributes:
        answered: ``clock`` seconds.
        labels: the possible labels.
        numbers: float64, ``map_probs`` where there are some, then ``probs``, in the labels' order.
        prediction_set: bit k is set where label k is in it.
        score: the predictive's review score, nats.
        several: whether several labels may be right.
        right: bit k is set where label k is right; None until it is told.
        label: place of the answered label; -1: the most probable.
        served: of a shadow's answer, that of the active artifact to the same row, of the same labels.
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
    right: int | None = None
    label: int = -1
    served: StoredPrediction | None = None

    def probabilities(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return ``map_probs``, empty where the model has no answer of its own, and ``probs``."""
        numbers = struct.unpack(f"{len(self.numbers) // 8}d", self.numbers)
        return numbers[: -len(self.labels)], numbers[-len(self.labels) :]


@dataclass(frozen=True)
class AnswerSignals:
    """The signals that are tested for drift: one number of each answer, or None."""

    epistemic: float | None
    confidence: float
    score: float
    accepted: bool


@dataclass(frozen=True)
class Reference:
    """An artifact's record of one predictive; None where it records nothing that can be compared.

    Rows are inputs, also where several labels may be right.

    Attributes:
        rows: of the evaluation on the test split, which accuracy to auroc_error are from.
        coverage: the level that the prediction sets state.
        calibration_rows: that fixed the sets' threshold.
        scores: (calibration rows,) float64, the predictive's review scores.
        scores_rank: the signals that these scores are, or order rows as.
        ranked_by_map: whether the review score is MAP's entropy, not that of the answer.
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


@dataclass(frozen=True)
class Figure:
    """One figure beside its limit and what it is compared with, all in the figure's unit."""

    value: float | None
    limit: float | None
    reference: float | None


@dataclass(frozen=True)
class Figures:
    """Figures of labelled predictions; what each means is said in ``service.http.schemas.feedback``."""

    accuracy: Figure
    nll: Figure
    ece: Figure
    ece_expected: float
    brier: Figure
    auroc_error: Figure
    coverage: Figure
    accepted: int
    accepted_risk: Figure
    map_nll: float | None
    map_gain: Figure


@dataclass(frozen=True)
class FlagErrors:
    """Labelled predictions with one flag, and the share of them that had a wrong label."""

    rows: int
    error_rate: float


@dataclass(frozen=True)
class Measured:
    """The metrics of labelled predictions, in all, by label if several may be right, and by flag."""

    figures: Figures | None = None
    labels: Mapping[str, Mapping[str, Any]] | None = None
    flags: Mapping[str, FlagErrors] = field(default_factory=dict)


@dataclass(frozen=True)
class SignalDrift:
    """One signal of recent answers against a baseline; the numbers are those of ``laplora.metrics.drift.Drift``."""

    signal: Signal
    reference: Baseline
    gap: float
    p_value: float
    reference_rows: int
    recent_rows: int


@dataclass(frozen=True)
class SeriesReport:
    """One artifact and predictive at one moment, beside what the artifact records (``baseline``).

    Attributes:
        predictions: answers so far; recent: those that drift looks at; labelled: those that the figures are of.
        labels: the metrics of each label by its name, where several may be right.
    """

    artifact: str
    digest: str
    predictive: str
    predictions: int
    recent: int
    labelled: int
    accepted_share: float | None
    labelled_accepted_share: float | None
    figures: Figures | None
    labels: Mapping[str, Mapping[str, Any]] | None
    flags: Mapping[str, FlagErrors]
    drift: Sequence[SignalDrift]
    baseline: Reference


def share(values: Sequence[bool]) -> float | None:
    """Return the share of true values, 0 to 1; None of none."""
    return sum(values) / len(values) if values else None
