"""Typed answers of the service. Fields that a newer service adds are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of every answer: read-only."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Artifact(Record):
    """Which artifact answered."""

    name: str
    digest: str
    base_model: str
    quantization: str


class Uncertainty(Record):
    """In nats. ``total`` is ``aleatoric`` plus ``epistemic``."""

    total: float
    aleatoric: float
    epistemic: float


class Prediction(Record):
    """The answer to one input. The service's page (/docs) describes each field and its unit.

    Attributes:
        labels: those of probability above 0.5, where several may be right; None where one is. ``probs`` are then each
            label's own and do not sum to 1, and logits are not centred.
        probs: by label, of the predictive; map_probs: of the fine-tuned model alone; without one
            of the base by label tokens, None where it has no answer.
        decision: ``accept`` or ``review``, for the stated target risk; decision_reason: why, in one sentence.
        uncertainty, probs_std: by label; None unless ``laplace`` answers or ``variance`` asked for them. ``spread_of``
            names the posterior where the predictive has no spread, such as ``temperature``.
        prediction_id: for ``feedback``; None from a service that keeps no predictions.
        answered_by: name of the predictive that computed it. This and what follows come with ``detail="full"``, what is
            by label also by its name in ``fields``; else they are None.
        logit_variance: (classes,), logit_covariance: (classes, classes), of the centred logits in the labels' order,
            in nats squared.
        expected_label: of labels that have an order the expected place, from 0; expected_label_std: how far the
            posterior moves it; None of others.
        familiarity: how like the training rows the input is, 0 to 1; None where the artifact has no such score.
    """

    id: str | None = None
    label: str
    labels: tuple[str, ...] | None = None
    probs: dict[str, float] | None = None
    expected_cost: float | None = None
    map_probs: dict[str, float] | None = None
    decision: Literal["accept", "review"]
    decision_reason: str | None = None
    prediction_set: tuple[str, ...]
    flags: tuple[str, ...]
    uncertainty: Uncertainty | None = None
    probs_std: dict[str, float] | None = None
    spread_of: str | None = None
    prediction_id: str | None = None
    label_text: str | None = None
    answered_by: str | None = None
    calibrated_probs: dict[str, dict[str, float]] | None = None
    logit_mean: tuple[float, ...] | None = None
    logit_variance: tuple[float, ...] | None = None
    logit_covariance: tuple[tuple[float, ...], ...] | None = None
    label_mass: float | None = None
    familiarity: float | None = None
    score: float | None = None
    expected_label: float | None = None
    expected_label_std: float | None = None
    tokens: int | None = None
    truncated: bool | None = None


class NothingAccepted(Record):
    """That the predictive accepts nothing at the target risk, in words, and the next risk at which it would."""

    message: str
    accepts_from: float | None = None


@dataclass(frozen=True)
class Answers(Sequence[Prediction]):
    """Predictions in the order of the inputs.

    Attributes:
        artifacts: those that answered; several where one replaced another between batches.
        predictive: name of the one that answered; None without ``detail="full"``.
        target_risk: error rate among accepted answers that the decisions aim for, or those by label; likewise.
        costs: that the decisions were made for in its place; likewise.
        nothing_accepted: set where that rate lets nothing be accepted: why everything goes to review.
    """

    predictions: tuple[Prediction, ...]
    artifacts: tuple[Artifact, ...]
    predictive: str | None
    target_risk: float | dict[str, float] | None
    nothing_accepted: NothingAccepted | None = None
    costs: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    def __getitem__(self, index: Any) -> Any:
        return self.predictions[index]


class ConditionFigures(Record):
    """One predictive on the new rows of a conditioning; ``nll`` in nats."""

    predictive: str
    accuracy: float
    nll: float
    ece: float
    brier: float


class Conditioned(Record):
    """The effect of new labels. Metrics are on the new rows, each answered without its own label.

    Attributes:
        artifact: the new version; previous: digest of the one before.
        before: of the artifact as packaged; after: conditioned on the labels of the other folds.
        difference: NLL after less before, nats, with its standard error.
    """

    artifact: Artifact
    previous: str
    recommended: str
    rows: int
    folds: int
    before: ConditionFigures
    after: ConditionFigures
    difference: float
    standard_error: float


class FeedbackResult(Record):
    """The result for one label, as of POST /feedback."""

    prediction_id: str
    status: Literal["recorded", "repeated", "corrected", "unknown"]


class LabelMetrics(Record):
    """Metrics of one label, where several may be right; ``present`` inputs have it."""

    present: int
    accuracy: float
    precision: float | None
    recall: float | None
    nll: float
    ece: float
    brier: float


class NllDifference(Record):
    """Mean NLL of one predictive less another's on the same inputs, nats, with its 95 % interval; below 0 is better."""

    difference: float
    low: float
    high: float


class MethodMetrics(Record):
    """Metrics of one predictive on labelled inputs, with 95 % ``intervals`` by metric (the ECE has none).

    ``over_temperature`` compares its NLL with temperature scaling's, and is None for that one and without it. ``kl`` is
    of labels that are probabilities, ``mae`` and ``rps`` of ordered ones; else None.

    If several labels may be right, they are over all labels of all inputs. Then ``labels`` has those of each label,
    and ``exact_match`` is the share of inputs of which every label is right; else both are None.
    """

    accuracy: float
    nll: float
    ece: float
    brier: float
    auroc_error: float | None
    auprc_error: float | None
    aurc: float
    excess_aurc: float
    intervals: dict[str, tuple[float, float]]
    reliability: tuple[dict[str, Any], ...]
    risk_coverage: dict[str, Any]
    kl: float | None = None
    mae: float | None = None
    rps: float | None = None
    exact_match: float | None = None
    labels: dict[str, LabelMetrics] | None = None
    over_temperature: NllDifference | None = None


class SuggestedInput(Record):
    """An input that is worth a label.

    Attributes:
        row: its place in the request, from 0.
        gain: what its label is expected to tell about the model's weights, nats.
        predicted, probs, entropy, familiarity: of the answer now; entropy in nats. If several labels may be right,
            ``predicted`` is a tuple of those present.
    """

    row: int
    id: str | None = None
    gain: float
    predicted: str | tuple[str, ...]
    probs: dict[str, float]
    entropy: float
    familiarity: float | None = None


class Suggested(Record):
    """Which inputs to label next, in that order.

    ``repeated`` inputs had the prompt of an earlier one, ``unfamiliar`` ones were below ``least_familiarity``.
    """

    artifact: Artifact
    rows: int
    repeated: int
    unfamiliar: int = 0
    suggested: tuple[SuggestedInput, ...]


class Cost(Record):
    """Mean cost of an input by the stated costs, its 95 % ``interval``, and what it is if all or none are reviewed."""

    mean: float
    interval: tuple[float, float]
    all_reviewed: float
    none_reviewed: float


class Accepted(Record):
    """The inputs that ``predictive`` accepts at a target risk; ``error_rate`` and its 95 % ``interval`` are of those.

    If several labels may be right, ``wrong`` and ``error_rate`` are of their labels. Rate and interval are None if none
    is accepted.
    """

    predictive: str
    target_risk: float | dict[str, float] | None = None
    costs: dict[str, Any] | None = None
    rows: int
    share: float
    wrong: int
    error_rate: float | None
    interval: tuple[float, float] | None
    cost: Cost | None = None


class Evaluated(Record):
    """Metrics of an artifact on labelled inputs, by predictive; ``unfamiliar`` is the share of inputs flagged so.

    ``accepted`` is None of a job.
    """

    artifact: Artifact
    rows: int
    unfamiliar: float | None = None
    accepted: Accepted | None = None
    methods: dict[str, MethodMetrics]


class MeasuredSets(Record):
    """Prediction sets on an artifact's test rows: the share that holds the true label, and their mean size."""

    empirical_coverage: float
    mean_size: float
    rows: int


class PredictionSets(Record):
    """The guarantee of an artifact's prediction sets.

    Attributes:
        nominal_coverage: share of inputs like the calibration rows whose set is to hold the true label.
        measured: by predictive, on the artifact's own test rows; empty where nothing was recorded.
    """

    nominal_coverage: float
    calibration_rows: int
    measured: dict[str, MeasuredSets]


class ShadowDifference(Record):
    """How much better a candidate is in a figure: ``value`` as measured, ``low`` the least for certain."""

    figure: str
    value: float | None
    low: float


class Shadow(Record):
    """How a candidate in the shadow compares with the active artifact.

    Attributes:
        share: of rows that it answers too; rows: answered by both; missed: not answered by it, though drawn.
        agreement: share of rows with the same label; None before any row.
        accepted_share: by ``active``, ``shadow`` and ``both``.
        labelled: rows of both with a label; figures: of these, by ``active`` and ``shadow``.
        verdict: ``not_asked``, ``waiting``, ``better`` or ``undecided``; reason: why.
    """

    artifact: Artifact
    active: Artifact
    share: float
    rows: int
    missed: int
    agreement: float | None
    accepted_share: dict[str, float]
    labelled: int
    figures: dict[str, dict[str, float | None]]
    differences: tuple[ShadowDifference, ...]
    verdict: str
    reason: str


class ShadowAnswer(Record):
    """The answer of /shadow."""

    shadow: Shadow | None


class ServedArtifact(Record):
    """One artifact that the service knows. Fields are None where it cannot be read.

    Attributes:
        active: it answers the requests that name none.
        loaded: requests can name it.
        memory_bytes: of its adapters and posteriors; None unless it is loaded.
        prediction_sets: what they promise, and what was measured; None also of servers that do not say it.
    """

    name: str
    active: bool
    loaded: bool
    memory_bytes: int | None
    digest: str | None
    base_model: str | None
    labels: tuple[str, ...] | None
    fields: tuple[str, ...] | None
    predictives: tuple[str, ...] | None
    prediction_sets: PredictionSets | None = None
    error: str | None
