"""Request and response bodies. Requests are strict: no coercion, no unknown options, no NaN."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, WithJsonSchema

from laplora.thresholds import Flag
from laplora.uncertainty import FLAGS

# Finite is enforced, the range only documented: rounding may leave 1.0000001.
Probability = Annotated[FiniteFloat, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
Probabilities = dict[str, Probability]

_EXAMPLE_INPUT: dict[str, Any] = {"id": "a1", "text": "a gripping, funny, beautifully acted film ."}
_FIELDS_SCHEMA: dict[str, Any] = {
    "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
}


class Strict(BaseModel):
    """Base of request models."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Answer(BaseModel):
    """Base of response models; a NaN or an infinity cannot leave through one."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")


class Input(BaseModel):
    """One input: the fields of the artifact's template (for example `text`), or `question` and `choices`, or `prompt`.

    `prompt` is an already rendered prompt. GET /v2/models/{name} names the active artifact's fields.
    """

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        json_schema_extra={**_FIELDS_SCHEMA, "examples": [_EXAMPLE_INPUT]},
    )

    id: str | None = Field(default=None, max_length=256, description="Echoed in the answer; unique within the request.")

    @property
    def template_fields(self) -> dict[str, Any]:
        """Whatever was sent beside this model's own fields."""
        return dict(self.__pydantic_extra__ or {})


class LabelledInput(Input):
    """One input and its true label."""

    model_config = ConfigDict(
        json_schema_extra={**_FIELDS_SCHEMA, "examples": [{**_EXAMPLE_INPUT, "label": "positive"}]}
    )

    label: str = Field(max_length=256, description="True label: one of the artifact's label words.")


class PredictOptions(Strict):
    """How to predict."""

    mode: Literal["laplace", "map", "fast"] = Field(
        default="laplace",
        description="laplace: the artifact's recommended predictive answers, and the posterior's variances come with "
        "it; map: one forward pass, MAP answers, nothing about the posterior; fast: one forward pass, variances "
        "predicted from it, and laplace where the error of that could decide (answered_by says which).",
    )
    predictive: str | None = Field(
        default=None,
        max_length=64,
        description="Name of the predictive that answers, one of the artifact's (GET /artifacts); unset: as mode says. "
        "The posterior's variances come with it where it has a posterior, where mode laplace is sent too, or with "
        "covariance.",
        examples=[None],
    )
    target_risk: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Error rate that accepted answers may have; decisions are made for it. Unset: the artifact's.",
        examples=[None],
    )
    covariance: bool = Field(
        default=False, description="Whether to send logit_covariance (classes x classes, squared nats)."
    )
    truncate: bool = Field(
        default=False, description="Whether to cut inputs that are too long, from the left, instead of 422."
    )
    order_average: bool = Field(
        default=False,
        description="Whether to ask each question in several orders of its choices (all 2 or 6 of two or three, as "
        "many as choices of more) and average the probabilities, so that the answer does not hang on the order sent. "
        "An input then costs, and counts for every limit, as much as its orders; 422 for templates without choices.",
    )


class PredictRequest(Strict):
    """Inputs to classify."""

    inputs: list[Input] = Field(min_length=1, description="Inputs, at most max_inputs (413 above); order is kept.")
    artifact: str | None = Field(
        default=None,
        max_length=256,
        description="Name of the artifact that must answer; unset: the active one.",
        examples=[None],
    )
    options: PredictOptions = Field(default_factory=lambda: PredictOptions(), description="How to predict.")


class ArtifactRef(Answer):
    """Which artifact answered."""

    name: str = Field(description="Its name.", examples=["sst2-smollm2"])
    digest: str = Field(description="Hash of its content.", examples=["sha256:2c26b46b68ffc68f"])
    base_model: str = Field(description="The base model it was fine-tuned from.", examples=["smollm2-135m-instruct"])
    quantization: str = Field(description="How the base model's weights are held: nf4, or none.", examples=["nf4"])


class UncertaintyParts(Answer):
    """Uncertainty in nats; total is aleatoric plus epistemic."""

    total: FiniteFloat = Field(description="Entropy of probs, nats.", examples=[0.47])
    aleatoric: FiniteFloat = Field(description="Expected entropy under the posterior, nats.", examples=[0.41])
    epistemic: FiniteFloat = Field(
        description="Mutual information of label and weights, nats: what more data could remove; with order_average, "
        "of label, weights and order.",
        examples=[0.06],
    )
    order: FiniteFloat | None = Field(
        default=None,
        description="The part of epistemic that the order of the choices decides, nats; only with order_average.",
        examples=[None],
    )


class PredictiveRef(Answer):
    """Which predictive answered, and which one the artifact recommends."""

    name: str = Field(description="The one that answered.", examples=["laplace"])
    recommended: str = Field(description="The one that answers when none is asked for.", examples=["laplace"])
    reason: str = Field(description="Why that one is recommended, from the artifact's calibration split.")


class PredictionOut(Answer):
    """One input's answer. In map mode, what needs the posterior is null and probs equals map_probs."""

    id: str | None = Field(default=None, description="The input's id, if it had one.")
    label: str = Field(description="Most probable label under probs.", examples=["positive"])
    label_text: str = Field(description="The chosen choice's text, or the label itself.", examples=["positive"])
    answered_by: str = Field(
        description="The predictive that made this answer: the one that was asked for, but laplace in place of fast "
        "where the error of the predicted variance could decide the label or the decision.",
        examples=["laplace"],
    )
    map_probs: Probabilities = Field(description="Softmax of the fine-tuned model's logits, by label.")
    probs: Probabilities = Field(description="The answering predictive's mean, by label.")
    probs_std: Probabilities | None = Field(
        description="Standard deviation of each probability over the weights, by label; null for map and temperature, "
        "unless order_average gives them a spread."
    )
    calibrated_probs: dict[str, Probabilities] = Field(
        description="Probabilities of each other predictive of the artifact that needed no further pass, by predictive "
        "and label."
    )
    logit_mean: list[FiniteFloat] = Field(description="Centred MAP logits, nats, in the labels' order.")
    logit_variance: list[FiniteFloat] | None = Field(
        description="Variance of each centred logit under the posterior, squared nats, in answers by fast the "
        "predicted one; null where there is none."
    )
    logit_covariance: list[list[FiniteFloat]] | None = Field(
        default=None, description="Covariance of the centred logits, squared nats; only with options.covariance."
    )
    uncertainty: UncertaintyParts | None = Field(
        description="Decomposed uncertainty of the answering predictive, nats; null for map and temperature, "
        "unless order_average is on."
    )
    label_mass: Probability = Field(description="Probability that the whole vocabulary's softmax puts on the labels.")
    score: FiniteFloat = Field(description="The predictive's review score: higher means more likely wrong.")
    prediction_set: list[str] = Field(description="Conformal set: holds the true label at the artifact's stated level.")
    flags: list[Flag] = Field(
        description="Why the answer deserves a look; thresholds come from the artifact's calibration split. "
        + "; ".join(f"{name}: {meaning}" for name, meaning in FLAGS.items())
    )
    decision: Literal["accept", "review"] = Field(description="What to do with the answer.")
    tokens: int = Field(
        description="Tokens of the prompt as scored; with order_average, of all its orders.", examples=[61]
    )
    orders: int | None = Field(
        default=None,
        description="Orders of the choices that the answer is an average over; only with order_average.",
        examples=[None],
    )
    truncated: bool = Field(description="Whether the prompt was cut.")


class Timing(Answer):
    """Where the time went, milliseconds."""

    queue: FiniteFloat = Field(ge=0, description="From queueing until the first input reached the device, ms.")
    tokenize: FiniteFloat = Field(ge=0, description="Rendering and tokenizing, ms.")
    compute: FiniteFloat = Field(
        ge=0, description="From the first input's start on the device to the last one's end, ms."
    )
    total: FiniteFloat = Field(ge=0, description="From the parsed request to the finished answer, ms.")


class PredictResponse(Answer):
    """Predictions in the order of the inputs."""

    artifact: ArtifactRef
    predictive: PredictiveRef
    target_risk: FiniteFloat = Field(description="The error rate that the decisions were made for.", examples=[0.05])
    predictions: list[PredictionOut]
    timing_ms: Timing


class EvaluateOptions(Strict):
    """How to evaluate."""

    truncate: bool = Field(
        default=False, description="Whether to cut inputs that are too long, from the left, instead of 422."
    )
    order_average: bool = Field(
        default=False,
        description="Whether to ask each question in several orders of its choices, as in POST /predict, and measure "
        "the average too: as NAME_order_average beside every method. Limits count an input's orders.",
    )
    bins: int = Field(default=15, ge=1, le=100, description="Equal-width confidence bins of ece and reliability.")
    resamples: int = Field(default=1000, ge=10, le=2000, description="Bootstrap resamples behind the 95 % intervals.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of the bootstrap.")


class EvaluateRequest(Strict):
    """Labelled inputs to measure the artifact on."""

    inputs: list[LabelledInput] = Field(min_length=1, description="Labelled inputs, at most max_inputs (413 above).")
    artifact: str | None = Field(
        default=None,
        max_length=256,
        description="Name of the artifact that must answer; unset: the active one.",
        examples=[None],
    )
    options: EvaluateOptions = Field(default_factory=lambda: EvaluateOptions(), description="How to evaluate.")


class ReliabilityBinOut(Answer):
    """One confidence bin (lower, upper]."""

    lower: FiniteFloat = Field(description="Lower edge.")
    upper: FiniteFloat = Field(description="Upper edge.")
    count: int = Field(description="Inputs in the bin.")
    confidence: FiniteFloat | None = Field(description="Mean confidence; null in an empty bin.")
    accuracy: FiniteFloat | None = Field(description="Accuracy; null in an empty bin.")


class RiskCoverageOut(Answer):
    """Error rate among the inputs kept, as the least certain are set aside."""

    coverage: list[FiniteFloat] = Field(description="Share of inputs kept.")
    risk: list[FiniteFloat] = Field(description="Error rate among them.")
    area: FiniteFloat = Field(description="Area under the curve; lower is better.")


class MethodMetrics(Answer):
    """Metrics of one way to get probabilities."""

    accuracy: FiniteFloat
    nll: FiniteFloat = Field(description="Mean negative log-likelihood, nats.")
    ece: FiniteFloat = Field(description="Expected calibration error, 0 to 1.")
    brier: FiniteFloat = Field(description="Mean over inputs of the squared error summed over classes, 0 to 2.")
    auroc_error: FiniteFloat | None = Field(
        description="How well the uncertainty ranks the mistakes, 0.5 is chance; null without both outcomes."
    )
    auprc_error: FiniteFloat | None = Field(
        description="Average precision of finding the mistakes by the uncertainty; null without a mistake."
    )
    aurc: FiniteFloat = Field(description="Area under the risk-coverage curve; lower is better.")
    excess_aurc: FiniteFloat = Field(description="The same above the best ranking that the accuracy allows.")
    intervals: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(description="95 % bootstrap interval by metric.")
    reliability: list[ReliabilityBinOut]
    risk_coverage: RiskCoverageOut


class EvaluateResponse(Answer):
    """Metrics by predictive: every one that the artifact carries."""

    artifact: ArtifactRef
    rows: int = Field(description="Inputs measured.")
    methods: dict[str, MethodMetrics]
    timing_ms: Timing


class LiveResponse(Answer):
    """The process answers."""

    status: Literal["live"]


class ReadyResponse(Answer):
    """The artifact answers: a real forward pass and the golden replay succeeded."""

    status: Literal["ready"]
    artifact: ArtifactRef


class V2Live(Answer):
    """Open Inference Protocol liveness."""

    live: bool


class V2Ready(Answer):
    """Open Inference Protocol readiness."""

    ready: bool


class V2Tensor(Answer):
    """Open Inference Protocol tensor description; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class V2Model(Answer):
    """Open Inference Protocol model metadata."""

    name: str
    versions: list[str] = Field(description="The artifact's digest.")
    platform: Literal["laplora"]
    inputs: list[V2Tensor] = Field(description="The template's fields.")
    outputs: list[V2Tensor]


class RecommendedOut(Answer):
    """The predictive that an artifact recommends, and the comparison that it was chosen by."""

    predictive: str = Field(description="Its name.", examples=["laplace"])
    reason: str = Field(description="Why, in one sentence with figures.")
    chosen_by: Literal["calibration", "configuration"] = Field(description="Who chose it.")
    table: dict[str, dict[str, FiniteFloat]] = Field(
        description="By predictive, on the calibration split, cross-fitted: nll, its difference to map, and that "
        "difference's 95 % interval, nats."
    )


class WeightsOut(Answer):
    """How the server holds the base model's weights."""

    held: Literal["packed", "expanded", "plain"] = Field(
        description="packed: in 4 bit; expanded: from 4 bit, once at load, the same numbers; plain: never in 4 bit."
    )
    reason: str = Field(description="Why, in one sentence; the setting --dequantize asks for one or the other.")


class ArtifactSummary(Answer):
    """One artifact of the root."""

    name: str
    active: bool
    digest: str | None = Field(description="Hash of its content; null when it cannot be read.")
    base_model: str | None
    quantization: str | None
    labels: list[str] | None = Field(description="Its label words, in order.")
    fields: list[str] | None = Field(description="Names of its template's fields.")
    predictives: list[str] | None = Field(description="Names that options.predictive can have.")
    recommended: RecommendedOut | None = Field(description="The predictive that answers unless another is asked for.")
    metrics: dict[str, Any] | None = Field(description="What its manifest records from its own evaluation.")
    weights: WeightsOut | None = Field(description="How its base model's weights are held; null unless it is active.")
    error: str | None = Field(description="Why it cannot be served, if it cannot be read.")


class ArtifactsResponse(Answer):
    """The artifacts that can be activated."""

    active: str | None = Field(description="Name of the one that answers; null while loading.")
    artifacts: list[ArtifactSummary]


class ActivateResponse(Answer):
    """The artifact that answers from now on."""

    artifact: ArtifactRef
    previous: str | None = Field(description="Name of the one that answered before.")


class ErrorDetail(Answer):
    """What went wrong."""

    code: str = Field(description="Stable name of the error.", examples=["too_many_tokens"])
    message: str = Field(
        description="What was expected, what came, what to do.",
        examples=["the prompt has 900 tokens, the limit is 512: shorten it or set truncate"],
    )
    field: str | None = Field(
        default=None, description="Dotted path of the field at fault.", examples=["inputs.0.text"]
    )
    limit: int | None = Field(default=None, description="The limit that was passed.", examples=[512])
    got: int | None = Field(default=None, description="What came instead.", examples=[900])


class ErrorResponse(Answer):
    """The one shape of every error."""

    error: ErrorDetail
    request_id: str = Field(description="Also in the X-Request-ID header and in the server's log.")
