"""How calibrated the answers are in production: rolling figures of labelled predictions, and drift of all of them.

Everything is per series: one artifact (by digest) and one predictive. Figures of labelled predictions stand beside what
the artifact's own evaluation measured, each with the limit that chance alone passes once in a thousand looks. Drift
needs no labels: it compares recent answers with the artifact's calibration rows, and with the first answers given.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from laplora.metrics.drift import Drift, gap_above, kolmogorov_smirnov
from laplora.metrics.noise import calibrated_ece, highest_risk, lowest_coverage
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import accuracy, brier, ece, nll, row_nll

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.predictor import Predictor
    from service.feedback.labels import Kept

Signal = Literal["epistemic", "confidence", "score"]
Baseline = Literal["calibration", "calibration_quantile", "activation"]

#: One-sided probability of passing a limit by chance, and the normal's quantile of it.
CHANCE = 0.001
_NORMAL = 3.0902
#: Drift is not looked for in fewer recent answers.
FEWEST_RECENT = 50


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
class FlagFigure:
    """How often labelled predictions with one flag were wrong."""

    rows: int
    error_rate: float


@dataclass(frozen=True)
class Figures:
    """Figures of labelled predictions; None where there is nothing to compute them from.

    Attributes:
        auroc_error: how well the review score ranks the mistakes.
        nll_limit: highest NLL within chance of the reference, whose own noise is taken to be that of as many such rows.
        ece_expected: what a calibrated model measures on these confidences, above 0.
        ece_limit: highest ECE within chance of a calibrated model's, and of the reference's where that is worse.
        coverage: of the prediction sets; coverage_limit: the lowest within chance of the stated level.
        accepted_rows: that the server decided to accept; accepted_risk: their error rate; target_risk: the mean one
            that they were accepted for; accepted_risk_limit: the highest error rate within chance of it.
        map_nll: of MAP on the same rows; map_gain: map_nll - nll, above 0 where the served predictive is better;
            map_gain_limit: the lowest gain within chance of none.
        flags: by flag.
    """

    rows: int
    accuracy: float
    nll: float
    nll_limit: float | None
    ece: float
    ece_expected: float
    ece_limit: float
    brier: float
    auroc_error: float | None
    coverage: float
    coverage_limit: float | None
    accepted_rows: int
    accepted_risk: float | None
    target_risk: float | None
    accepted_risk_limit: float | None
    map_nll: float
    map_gain: float
    map_gain_limit: float | None
    flags: dict[str, FlagFigure] = field(default_factory=dict)


@dataclass(frozen=True)
class DriftFigure:
    """One signal of recent answers against one baseline."""

    signal: Signal
    reference: Baseline
    drift: Drift


@dataclass(frozen=True)
class Report:
    """One series at one moment.

    Attributes:
        predictions: answered in all; recent_rows: of them in the window.
        accepted_share: of the recent answers; labelled_accepted_share: of the labelled ones. Where the two differ, the
            labelled predictions are not a fair sample of all.
        figures: None while nothing is labelled.
    """

    artifact: str
    digest: str
    predictive: str
    reference: Reference
    predictions: int
    recent_rows: int
    accepted_share: float | None
    labelled_accepted_share: float | None
    figures: Figures | None
    drift: tuple[DriftFigure, ...]


@dataclass(frozen=True)
class _Answered:
    """What drift is looked for in: one number of each answer, or None."""

    epistemic: float | None
    confidence: float
    score: float
    accepted: bool


@dataclass(frozen=True)
class Snapshot:
    """What a report is computed from, taken under the lock and read without it.

    Attributes:
        version: grows with every change of what is labelled.
        labelled: rows with the places of their labels.
        first: the first answers given, complete wherever ``later`` holds any; later: recent ones after these.
    """

    version: int
    labelled: Sequence[tuple[Kept, int]]
    predictions: int
    recent: Sequence[_Answered]
    first: Sequence[_Answered]
    later: Sequence[_Answered]


class Series:
    """One artifact and predictive. ``service.feedback.labels`` holds its lock around each call but ``report``.

    Args:
        window: labelled predictions, and recent answers, that figures are computed from.
    """

    def __init__(self, artifact: str, digest: str, predictive: str, reference: Reference, window: int) -> None:
        self.artifact, self.digest, self.predictive = artifact, digest, predictive
        self.reference = reference
        self.predictions = 0
        self.last_answered = -math.inf
        self._window = window
        self._labelled: deque[Kept] = deque(maxlen=window)
        self._version = 0
        self._first: list[_Answered] = []
        self._recent: deque[_Answered] = deque(maxlen=window)
        self._measured: tuple[int, Figures | None] = (0, None)
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    @property
    def rows(self) -> int:
        """Labelled predictions in the window."""
        return len(self._labelled)

    def count(self, predictions: Sequence[Prediction], now: float) -> None:
        """Take answers in, for drift; ``now``: clock seconds."""
        self.last_answered = now
        for p in predictions:
            one = _Answered(p.epistemic, max(p.probs), p.score, p.decision == "accept")
            self.predictions += 1
            self._recent.append(one)
            if len(self._first) < self._window:
                self._first.append(one)

    def shared(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the same tuple for equal ones: rows hold labels and flags, of which there are few kinds."""
        found = tuple(names)
        return self._shared.setdefault(found, found)

    def label(self, kept: Kept, *, first: bool) -> None:
        """Take in a prediction whose label was told, or told anew."""
        if first:
            self._labelled.append(kept)
        self._version += 1

    def forget_before(self, oldest: float) -> None:
        """Drop labelled predictions that were answered before ``oldest``, clock seconds."""
        if any(kept.answered < oldest for kept in self._labelled):
            self._labelled = deque((k for k in self._labelled if k.answered >= oldest), maxlen=self._window)
            self._version += 1

    def snapshot(self) -> Snapshot:
        """Return a copy of what a report needs."""
        recent = list(self._recent)
        after = max(0, self.predictions - self._window)
        return Snapshot(
            version=self._version,
            labelled=[(kept, kept.label) for kept in self._labelled],
            predictions=self.predictions,
            recent=recent,
            first=self._first,
            later=recent[-after:] if after else [],
        )

    def report(self, now: Snapshot) -> Report:
        """Return the figures of a snapshot; those of labelled rows are computed once for each change of them."""
        version, figures = self._measured
        if version != now.version:
            figures = measure(now.labelled, self.reference) if now.labelled else None
            self._measured = (now.version, figures)
        return Report(
            artifact=self.artifact,
            digest=self.digest,
            predictive=self.predictive,
            reference=self.reference,
            predictions=now.predictions,
            recent_rows=len(now.recent),
            accepted_share=_share([one.accepted for one in now.recent]),
            labelled_accepted_share=_share([kept.accepted for kept, _ in now.labelled]),
            figures=figures,
            drift=tuple(drifts(self.reference, now)),
        )


def measure(labelled: Sequence[tuple[Kept, int]], reference: Reference) -> Figures:
    """Return the figures of labelled predictions, at least one."""
    rows = len(labelled)
    map_probs, probs = (_padded(table) for table in zip(*(k.probabilities() for k, _ in labelled), strict=True))
    labels = torch.tensor([label for _, label in labelled])
    losses, map_losses = row_nll(probs, labels), row_nll(map_probs, labels)
    wrong = (probs.argmax(1) != labels).tolist()
    accepted = [error for (kept, _), error in zip(labelled, wrong, strict=True) if kept.accepted]
    risks = [kept.target_risk for kept, _ in labelled if kept.accepted]
    calibrated = calibrated_ece(probs.amax(1), chance=CHANCE)
    noise = _standard_error(losses)
    gain_noise = _standard_error(map_losses - losses)
    mean_nll = nll(probs, labels)
    nll_limit = None
    if reference.nll is not None and reference.rows and noise is not None:
        nll_limit = reference.nll + _NORMAL * noise * math.sqrt(1 + rows / reference.rows)
    ece_limit = calibrated.limit
    if reference.ece is not None and reference.rows:
        # The reference was measured on a sample too; noise falls with the root of the rows.
        spread = (calibrated.limit - calibrated.mean) * math.sqrt(1 + rows / reference.rows)
        ece_limit = max(ece_limit, reference.ece + spread)
    risk = _mean(risks)
    return Figures(
        rows=rows,
        accuracy=accuracy(probs, labels),
        nll=mean_nll,
        nll_limit=nll_limit,
        ece=ece(probs, labels),
        ece_expected=calibrated.mean,
        ece_limit=ece_limit,
        brier=brier(probs, labels),
        auroc_error=error_auroc(_column([kept.score for kept, _ in labelled]), torch.tensor(wrong)),
        coverage=sum(kept.prediction_set >> label & 1 for kept, label in labelled) / rows,
        coverage_limit=None
        if reference.coverage is None
        else lowest_coverage(reference.coverage, rows, reference.calibration_rows, chance=CHANCE),
        accepted_rows=len(accepted),
        accepted_risk=_share(accepted),
        target_risk=risk,
        accepted_risk_limit=None if risk is None else highest_risk(risk, len(risks), chance=CHANCE),
        map_nll=nll(map_probs, labels),
        map_gain=float((map_losses - losses).mean()),
        map_gain_limit=None if gain_noise is None else -_NORMAL * gain_noise,
        flags=_by_flag([kept.flags for kept, _ in labelled], wrong),
    )


def drifts(reference: Reference, now: Snapshot) -> list[DriftFigure]:
    """Return every signal against every baseline there is for it."""
    found: list[DriftFigure] = []
    for signal in get_args(Signal):
        recent, first, later = (_values(rows, signal) for rows in (now.recent, now.first, now.later))
        if len(recent) >= FEWEST_RECENT:
            if reference.scores is not None and signal in reference.scores_rank:
                # The scores are recent answers' own scores, which order rows as this signal does.
                drift = kolmogorov_smirnov(reference.scores, _values(now.recent, "score"))
                found.append(DriftFigure(signal, "calibration", drift))
            elif signal == "epistemic" and reference.epistemic_above is not None:
                threshold, above = reference.epistemic_above
                drift = gap_above(threshold, above, reference.calibration_rows, recent)
                found.append(DriftFigure(signal, "calibration_quantile", drift))
        if len(later) >= FEWEST_RECENT and len(first):
            found.append(DriftFigure(signal, "activation", kolmogorov_smirnov(first, later)))
    return found


def reference_of(predictor: Predictor, predictive: str) -> Reference:
    """Return what the artifact records of a predictive.

    ``fast`` hands unsure rows to another predictive, so its own calibration scores are not those of its answers; an
    average over orders (another name than the artifact's predictives have) was not calibrated at all, and is compared
    with nothing but its own first answers and the stated level of its sets.
    """
    manifest = predictor.artifact.manifest
    calibration = manifest.calibration
    stated = Reference(coverage=calibration.coverage, calibration_rows=calibration.rows)
    record = {str(name): found for name, found in manifest.predictives.items()}.get(predictive)
    if record is None or record.thresholds is None:
        return stated
    metrics = manifest.metrics.get(predictive)
    metrics = metrics if isinstance(metrics, dict) else {}
    rows = metrics.get("rows")
    reference = replace(
        stated,
        rows=rows if isinstance(rows, int) and rows > 0 else 0,
        accuracy=_number(metrics.get("accuracy")),
        nll=_number(metrics.get("nll")),
        ece=_number(metrics.get("ece")),
        brier=_number(metrics.get("brier")),
        auroc_error=_number(metrics.get("auroc_error")),
    )
    if predictive == "fast":
        fidelity = metrics.get("fidelity")
        served = _number(fidelity.get("served_nll")) if isinstance(fidelity, dict) else None
        return reference if served is None else replace(reference, nll=served)
    rule, flag = record.thresholds.review, record.thresholds.flags.get("high_epistemic")
    ranks: list[Signal] = ["score"]
    if rule.score == "epistemic":
        ranks.append("epistemic")
    # Between two classes the entropy of the answer falls as its confidence grows: the same gap, and the same p-value.
    own_entropy = rule.score == "total_entropy" or (rule.score == "map_entropy" and predictive == "map")
    if own_entropy and len(manifest.labels) == 2:
        ranks.append("confidence")
    scores = predictor.review_scores
    above = None
    if flag is not None and flag.value is not None:
        # What torch.quantile leaves above the value that it interpolates to.
        above = flag.value, calibration.rows - 1 - math.floor(flag.level * (calibration.rows - 1) + 1e-9)
    return replace(
        reference,
        scores=scores[predictive].score if predictive in scores else None,
        scores_rank=tuple(ranks),
        epistemic_above=above,
    )


def _values(rows: Sequence[_Answered], signal: Signal) -> torch.Tensor:
    """Return (rows,) float64 the signal of the rows that have it."""
    found = [getattr(one, signal) for one in rows]
    return _column([value for value in found if value is not None])


def _column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _padded(table: Sequence[Sequence[float]]) -> torch.Tensor:
    """Return (rows, classes) float64, 0 where a row had fewer labels."""
    classes = max(len(row) for row in table)
    return torch.tensor([[*row, *[0.0] * (classes - len(row))] for row in table], dtype=torch.float64)


def _by_flag(flags: Sequence[Sequence[str]], wrong: Sequence[bool]) -> dict[str, FlagFigure]:
    errors: dict[str, list[bool]] = {}
    for raised, error in zip(flags, wrong, strict=True):
        for name in raised:
            errors.setdefault(name, []).append(error)
    return {name: FlagFigure(len(found), sum(found) / len(found)) for name, found in sorted(errors.items())}


def _standard_error(values: torch.Tensor) -> float | None:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _number(value: Any) -> float | None:
    """Return a metric of the manifest's free-form part, None unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
