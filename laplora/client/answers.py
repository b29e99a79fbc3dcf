"""What the service answers, typed. Fields that a newer service adds are ignored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Artifact(Record):
    """Which artifact answered."""

    name: str
    digest: str
    base_model: str
    quantization: str


class Uncertainty(Record):
    """Nats; total is aleatoric plus epistemic, of which ``order`` is what the order of the choices decides."""

    total: float
    aleatoric: float
    epistemic: float
    order: float | None = None


class Prediction(Record):
    """One input's answer; the service's page (/docs) describes each field and its unit.

    Attributes:
        answered_by: the predictive that made it; None from a service that does not say.
        probs: by label, the predictive's mean; map_probs: the fine-tuned model's own.
        probs_std: by label; None where the predictive has one set of weights.
        logit_variance, logit_covariance: nats squared, of the centred logits, in the labels' order.
        decision: ``accept`` or ``review``, for the stated target risk.
        prediction_id: what ``feedback`` knows it by; None where the service keeps no predictions.
    """

    id: str | None = None
    label: str
    label_text: str
    answered_by: str | None = None
    map_probs: dict[str, float]
    probs: dict[str, float]
    probs_std: dict[str, float] | None
    calibrated_probs: dict[str, dict[str, float]] = {}
    logit_mean: tuple[float, ...]
    logit_variance: tuple[float, ...] | None
    logit_covariance: tuple[tuple[float, ...], ...] | None = None
    uncertainty: Uncertainty | None
    label_mass: float
    score: float
    prediction_set: tuple[str, ...]
    flags: tuple[str, ...]
    decision: Literal["accept", "review"]
    tokens: int
    orders: int | None = None
    truncated: bool
    prediction_id: str | None = None


@dataclass(frozen=True)
class Answers(Sequence[Prediction]):
    """Predictions in the order of the inputs.

    Attributes:
        artifacts: those that answered; several where one took another's place between batches.
        predictive: name of the one that was asked for.
        target_risk: the error rate that decisions were made for.
    """

    predictions: tuple[Prediction, ...]
    artifacts: tuple[Artifact, ...]
    predictive: str | None
    target_risk: float | None

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)

    def __getitem__(self, place: Any) -> Any:
        return self.predictions[place]


class FeedbackResult(Record):
    """What became of one label: see POST /feedback on the service's page."""

    prediction_id: str
    status: Literal["recorded", "repeated", "corrected", "unknown"]


class MethodMetrics(Record):
    """Metrics of one predictive on labelled inputs; ``intervals``: 95 %, by metric."""

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


class Evaluated(Record):
    """What an artifact scores on labelled inputs, by predictive."""

    artifact: Artifact
    rows: int
    methods: dict[str, MethodMetrics]


class ServedArtifact(Record):
    """One artifact that the service knows; fields are None where it cannot be read.

    Attributes:
        active: it answers where a request names none.
        loaded: requests can name it.
        memory_bytes: of its adapters and posteriors; None where it is not loaded.
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
    error: str | None
