"""Bodies of POST /predict."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from laplora.answers.written import Detail, LabelField, Shown
from laplora.decisions.thresholds import FLAGS, Flag
from laplora.decisions.wanted import Costs
from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.base import (
    Answer,
    ArtifactName,
    Deciding,
    Probabilities,
    Probability,
    Strict,
    TimeoutSeconds,
    Timing,
)
from service.http.schemas.inputs import Input

_EXAMPLE_PROBS = {"negative": 0.18, "positive": 0.82}


class PredictOptions(Deciding):
    """How to predict."""

    predictive: str | None = Field(None, max_length=64, examples=[None])
    """Name of the predictive that answers, one of the artifact's (GET /artifacts). Unset: the recommended one. It costs
    just what it needs (map: one forward pass, nothing about the posterior).
    """
    detail: Detail = "short"
    """short: what to act on, and of it what is not null. full: every field but logit_covariance, and how the request
    was answered.
    """
    fields: list[LabelField] | None = Field(None, max_length=16, examples=[None])
    """Which of the fields with numbers for each label to send, in place of those of detail. One of them that needs the
    posterior asks for it, as variance and covariance do.
    """
    variance: bool = False
    """Whether to send the spread, probs_std, uncertainty and logit_variance, in a short answer by another predictive
    than laplace too. A head sends its own, which finds no mistakes that probs do not. map and temperature have none:
    they send the posterior's, at the cost of its passes, and spread_of says so.
    """
    covariance: bool = False
    """Whether to send logit_covariance (classes x classes, squared nats)."""
    truncate: bool = False
    """Whether to cut inputs that are too long, where the artifact cuts them, else from the left, instead of 422."""
    timeout_s: TimeoutSeconds = None

    @property
    def shown(self) -> Shown:
        """Which fields of an answer are sent."""
        fields = None if self.fields is None else tuple(self.fields)
        return Shown(self.detail, fields, self.variance, self.covariance)


class PredictRequest(Strict):
    """Inputs to classify."""

    inputs: list[Input] = Field(min_length=1)
    """Inputs, at most max_inputs (413 above), with different ids; answers keep their order."""
    artifact: ArtifactName = None
    options: PredictOptions = Field(default_factory=lambda: PredictOptions(), description="How to predict.")


class UncertaintyParts(Answer):
    """Uncertainty in nats; total is aleatoric plus epistemic."""

    total: FiniteFloat = Field(description="Entropy of probs, nats.", examples=[0.47])
    aleatoric: FiniteFloat = Field(
        description="Expected entropy under the posterior, nats; of a head, the rest of total.", examples=[0.41]
    )
    epistemic: FiniteFloat = Field(examples=[0.06])
    """Mutual information of label and weights, nats: what more data could remove."""


class PredictiveRef(Answer):
    """Which predictive answered, and which one the artifact recommends."""

    name: str = Field(description="The one that answered.", examples=["laplace"])
    recommended: str = Field(description="The one that answers when none is asked for.", examples=["laplace"])
    reason: str = Field(
        examples=[
            "laplace has an NLL of 0.369 nats on the 150 calibration rows that chose it, -0.506 against map, the "
            "fine-tuned model alone (95 % -0.785 to -0.250); the lowest of all"
        ]
    )
    """Why the one that answered did, with figures of the artifact's calibration split."""


class NothingAcceptedOut(Answer):
    """That the predictive accepts nothing at the target risk, whatever the input: every answer goes to review."""

    message: str = Field(
        examples=[
            "conditioned accepts nothing at an error rate of 5 %: every answer goes to review. At 9.1 % it would "
            "accept some"
        ]
    )
    """Says so."""
    accepts_from: FiniteFloat | None = Field(examples=[0.091])
    """The next higher target_risk at which it would accept something, 0 to 1; null where there is none."""


class PredictionOut(Answer):
    """One input's answer. A short one has the fields down to prediction_id, of them those that are not null."""

    id: str | None = Field(default=None, description="The input's id, if it had one.", examples=["a1"])
    label: str = Field(description="Most probable label under probs; of costs, the cheapest.", examples=["positive"])
    labels: list[str] | None = Field(None, examples=[["news", "sport"]])
    """Labels that are present, of probability above 0.5; only from an artifact of which several labels may be right."""
    expected_cost: FiniteFloat | None = Field(None, examples=[0.9])
    """The expected cost of accepting the label, in the unit of the stated costs; left out without costs."""
    probs: Probabilities | None = Field(None, examples=[_EXAMPLE_PROBS])
    """The answering predictive's mean, by label: probabilities. If several labels may be right, each label's own
    probability of being present, and likewise map_probs and calibrated_probs: they do not sum to 1.
    """
    map_probs: Probabilities | None = Field(None, examples=[{"negative": 0.03, "positive": 0.97}])
    """The model alone, before averaging and calibration: softmax of the fine-tuned model's logits, by label:
    probabilities. Without an adapter that of the base's label tokens, null where it has none. The answer is probs;
    where the two differ in their first label, decision_reason says so.
    """
    decision: Literal["accept", "review"] = Field(examples=["review"])
    """Use the answer, or show it to a person."""
    decision_reason: str = Field(examples=["0.82 is below 0.91, the threshold for a 5 % error rate"])
    """Why, in one sentence: the label's probability beside what it needs for the target risk, or a flag. With more than
    two labels, what it needs depends on how the others share the rest.
    """
    prediction_set: list[str] = Field(examples=[["positive"]])
    """Conformal set: holds the true label at the artifact's stated level or more often, and always the answer's, but of
    costs. If
    several labels may be right, the labels that cannot be ruled out: each true label is among them at that level. For
    an unfamiliar input, it is every possible label: the guarantee only holds for rows like the calibration rows.
    """
    flags: list[Flag] = Field(
        description="Why the answer deserves a look; thresholds come from the artifact's calibration split. "
        + "; ".join(f"{name}: {meaning}" for name, meaning in FLAGS.items()),
        examples=[["high_epistemic"]],
    )
    uncertainty: UncertaintyParts | None = None
    """Decomposed uncertainty, nats; null where probs_std is, and where a head's posterior disagrees more than the
    entropy of its answer: that has no such parts. If several labels may be right, the sum over them.
    """
    probs_std: Probabilities | None = Field(None, examples=[{"negative": 0.11, "positive": 0.11}])
    """Standard deviation of each probability over the weights, by label; null for a predictive without a spread (map,
    temperature), unless variance asks for the posterior's. A short answer has it and uncertainty from laplace; else
    variance asks for them.
    """
    spread_of: str | None = Field(None, examples=["laplace"])
    """The predictive that uncertainty and probs_std are of, where it is another than the answering one: only with
    variance.
    """
    prediction_id: str | None = Field(None, examples=["gJ3mGpXbHk1TzqJm0yQe2A"])
    """The id of this answer for POST /feedback, for feedback_keep_s at most; left out where the server keeps none. Only
    the caller that it was sent to can use it.
    """
    label_text: str | None = Field(None, description="The chosen choice's text, or the label.", examples=["positive"])
    answered_by: str | None = Field(None, examples=["laplace"])
    """The predictive that made this answer."""
    calibrated_probs: dict[str, Probabilities] | None = Field(
        None, examples=[{"temperature": {"negative": 0.21, "positive": 0.79}}]
    )
    """Probabilities of each other predictive of the artifact that needed no further pass, by predictive and label."""
    logit_mean: list[FiniteFloat] | None = Field(None, examples=[[-1.74, 1.74]])
    """Centred MAP logits, nats, in the labels' order. If several labels may be right, logits and their variances are
    not centred.
    """
    logit_variance: list[FiniteFloat] | None = Field(None, examples=[[2.3, 2.3]])
    """Variance of each centred logit under the posterior, squared nats; null where nothing asked for the posterior."""
    logit_covariance: list[list[FiniteFloat]] | None = Field(None, examples=[[[2.3, -2.3], [-2.3, 2.3]]])
    """Covariance of the centred logits, squared nats; only where it is asked for."""
    label_mass: Probability | None = Field(None, examples=[0.93])
    """Probability that the whole vocabulary's softmax puts on the labels; null without an adapter."""
    familiarity: Probability | None = Field(None, examples=[0.63])
    """How like the training rows the input is, 0 to 1: the share of the calibration rows that are at least as unusual,
    the input counted in. Among rows like the calibration rows, one in fifty has at most 0.02; null where the artifact
    has no such score.
    """
    score: FiniteFloat | None = Field(None, examples=[0.47])
    """The predictive's review score, of no unit: higher means more likely wrong. If several labels may be right, the
    highest of theirs.
    """
    expected_label: FiniteFloat | None = Field(None, examples=[2.4])
    """The expected place in the labels' order, from 0: the sum of place times probability; only from an artifact whose
    labels have an order.
    """
    expected_label_std: FiniteFloat | None = Field(None, examples=[0.2])
    """How far the posterior's plausible weights move expected_label: a standard deviation, number of places. It is not
    how far true labels are from it. Null for a predictive without a spread.
    """
    tokens: int | None = Field(None, examples=[61])
    """Tokens of the prompt as scored."""
    truncated: bool | None = Field(None, description="Whether the prompt was cut.", examples=[False])


class PredictResponse(Answer):
    """Predictions in the order of the inputs. How they were made comes with options.detail full."""

    artifact: ArtifactRef = Field(description="Which artifact answered.")
    predictive: PredictiveRef | None = Field(None, description="Which predictive answered, and why.")
    target_risk: FiniteFloat | dict[str, FiniteFloat] | None = Field(None, examples=[0.05])
    """The error rate, 0 to 1, that the decisions were made for, or those by label; null of costs."""
    costs: Costs | None = None
    """The costs that the decisions were made for."""
    nothing_accepted: NothingAcceptedOut | None = None
    """Set where nothing can be accepted at that rate: why everything goes to review."""
    predictions: list[PredictionOut] = Field(description="One answer per input, in the inputs' order.")
    timing_ms: Timing | None = Field(None, description="The time of each stage, milliseconds.")
