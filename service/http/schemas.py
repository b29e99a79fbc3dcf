"""Request and response bodies. Requests are strict: no coercion, no unknown options, no NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, WithJsonSchema

from laplora.decisions.thresholds import Flag
from laplora.decisions.uncertainty import FLAGS

# Finite is enforced, the range only documented: rounding may leave 1.0000001.
Probability = Annotated[FiniteFloat, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
Probabilities = dict[str, Probability]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: JSON has one kind of number: 15.0 is the integer 15 to JSON Schema, and what some languages write for it.
WholeNumber = Annotated[int, BeforeValidator(_whole)]

_EXAMPLE_INPUT: dict[str, Any] = {"id": "a1", "text": "a gripping, funny, beautifully acted film ."}
_EXAMPLE_QUESTION: dict[str, Any] = {
    "id": "a2",
    "question": "The trophy did not fit into the suitcase because the _ was too large.",
    "choices": ["trophy", "suitcase"],
}
_EXAMPLE_PROBS = {"negative": 0.18, "positive": 0.82}
#: Named here for readers and for generated clients; which of them an input may have is the artifact's to say.
_INPUT_FIELDS: dict[str, Any] = {
    "question": {"type": "string", "description": "Question, of templates that take one."},
    "choices": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Choices of a question, in order: two or more, and no more than the artifact has labels.",
    },
    "prompt": {"type": "string", "description": "An already rendered prompt, in place of every other field but id."},
}


def _with_fields(examples: list[dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    """Return what adds to an input's schema the fields that a template may have, and examples."""

    def add(schema: dict[str, Any]) -> None:
        schema["properties"] |= _INPUT_FIELDS
        schema["additionalProperties"] = {"type": "string", "description": "Further fields of the artifact's template."}
        schema["examples"] = examples

    return add


class Strict(BaseModel):
    """Base of request models."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Answer(BaseModel):
    """Base of response models; a NaN or an infinity cannot leave through one."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")


class Input(BaseModel):
    """One input: the fields of the artifact's template (for example `text`), or `question` and `choices`, or `prompt`.

    `prompt` is an already rendered prompt. GET /artifacts names each artifact's fields. One request may mix them.
    """

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        json_schema_extra=_with_fields([_EXAMPLE_INPUT, _EXAMPLE_QUESTION]),
    )

    id: str | None = Field(default=None, max_length=256, description="Echoed in the answer; unique within the request.")

    @property
    def template_fields(self) -> dict[str, Any]:
        """Whatever was sent beside this model's own fields."""
        return dict(self.__pydantic_extra__ or {})


class LabelledInput(Input):
    """One input and its true label."""

    model_config = ConfigDict(
        json_schema_extra=_with_fields([{**_EXAMPLE_INPUT, "label": "positive"}, {**_EXAMPLE_QUESTION, "label": "A"}])
    )

    label: str = Field(max_length=256, description="True label: one of the artifact's label words.")


class PredictOptions(Strict):
    """How to predict."""

    mode: Literal["laplace", "map", "fast"] = Field(
        default="laplace",
        description="laplace: the artifact's recommended predictive answers, and the posterior's variances come with "
        "it; map: one forward pass, MAP answers, nothing about the posterior; fast: one forward pass, variances "
        "predicted from it, and laplace where the error of that could decide or the input is unlike what they "
        "were learnt from (answered_by says which).",
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
        "many as choices of more) and average the probabilities. Of two or three choices the answer then does not "
        "depend on the order sent; of more it favours no place. An input then costs, and counts for every limit, as "
        "much as its orders; 422 for templates without choices.",
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds the request may take, from its parsed body to its answer, before a 504; what of it still "
        "waits is dropped then. Unset, or more than request_timeout_s: that.",
        examples=[None],
    )


class PredictRequest(Strict):
    """Inputs to classify."""

    inputs: list[Input] = Field(
        min_length=1,
        fail_fast=True,
        description="Inputs, at most max_inputs (413 above), with different ids; answers keep their order.",
    )
    artifact: str | None = Field(
        default=None,
        max_length=256,
        description="Name of the loaded artifact that answers; unset: the active one.",
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
        examples=[0.01],
    )


class PredictiveRef(Answer):
    """Which predictive answered, and which one the artifact recommends."""

    name: str = Field(description="The one that answered.", examples=["laplace"])
    recommended: str = Field(description="The one that answers when none is asked for.", examples=["laplace"])
    reason: str = Field(
        description="Why that one is recommended, from the artifact's calibration split.",
        examples=["laplace: NLL 0.369 on 150 calibration rows, -0.506 against map (95 % -0.785 to -0.250); the lowest"],
    )


class PredictionOut(Answer):
    """One input's answer. In map mode, what needs the posterior is null and probs equals map_probs."""

    id: str | None = Field(default=None, description="The input's id, if it had one.", examples=["a1"])
    label: str = Field(description="Most probable label under probs.", examples=["positive"])
    label_text: str = Field(description="The chosen choice's text, or the label itself.", examples=["positive"])
    answered_by: str = Field(
        description="The predictive that made this answer: the one that was asked for, but laplace in place of fast "
        "where the error of the predicted variance could decide the label or the decision, or the input is unlike "
        "those that it was learnt from.",
        examples=["laplace"],
    )
    map_probs: Probabilities = Field(
        description="Softmax of the fine-tuned model's logits, by label: probabilities.",
        examples=[{"negative": 0.03, "positive": 0.97}],
    )
    probs: Probabilities = Field(
        description="The answering predictive's mean, by label: probabilities.", examples=[_EXAMPLE_PROBS]
    )
    probs_std: Probabilities | None = Field(
        description="Standard deviation of each probability over the weights, by label; null for map and temperature, "
        "unless order_average gives them a spread.",
        examples=[{"negative": 0.11, "positive": 0.11}],
    )
    calibrated_probs: dict[str, Probabilities] = Field(
        description="Probabilities of each other predictive of the artifact that needed no further pass, by predictive "
        "and label.",
        examples=[{"temperature": {"negative": 0.21, "positive": 0.79}}],
    )
    logit_mean: list[FiniteFloat] = Field(
        description="Centred MAP logits, nats, in the labels' order.", examples=[[-1.74, 1.74]]
    )
    logit_variance: list[FiniteFloat] | None = Field(
        description="Variance of each centred logit under the posterior, squared nats, in answers by fast the "
        "predicted one; null where there is none.",
        examples=[[2.3, 2.3]],
    )
    logit_covariance: list[list[FiniteFloat]] | None = Field(
        default=None,
        description="Covariance of the centred logits, squared nats; only with options.covariance.",
        examples=[[[2.3, -2.3], [-2.3, 2.3]]],
    )
    uncertainty: UncertaintyParts | None = Field(
        description="Decomposed uncertainty of the answering predictive, nats; null for map and temperature, "
        "unless order_average is on."
    )
    label_mass: Probability = Field(
        description="Probability that the whole vocabulary's softmax puts on the labels.", examples=[0.93]
    )
    score: FiniteFloat = Field(
        description="The predictive's review score, of no unit: higher means more likely wrong.", examples=[0.47]
    )
    prediction_set: list[str] = Field(
        description="Conformal set: holds the true label at the artifact's stated level.", examples=[["positive"]]
    )
    flags: list[Flag] = Field(
        description="Why the answer deserves a look; thresholds come from the artifact's calibration split. "
        + "; ".join(f"{name}: {meaning}" for name, meaning in FLAGS.items()),
        examples=[["high_epistemic"]],
    )
    decision: Literal["accept", "review"] = Field(
        description="What to do with the answer: use it, or show it to a person.", examples=["review"]
    )
    tokens: int = Field(
        description="Tokens of the prompt as scored; with order_average, of all its orders.", examples=[61]
    )
    orders: int | None = Field(
        default=None,
        description="Number of orders of the choices that the answer is an average over; only with order_average.",
        examples=[2],
    )
    truncated: bool = Field(description="Whether the prompt was cut.", examples=[False])
    prediction_id: str | None = Field(
        default=None,
        description="What POST /feedback knows this answer by, for feedback_keep_s at most; left out where the server "
        "keeps none. Only the caller that it was sent to can use it.",
        examples=["gJ3mGpXbHk1TzqJm0yQe2A"],
    )


class Timing(Answer):
    """Where the time went, milliseconds."""

    queue: FiniteFloat = Field(
        ge=0, description="From queueing until the first input reached the device, ms.", examples=[0.4]
    )
    tokenize: FiniteFloat = Field(ge=0, description="Rendering and tokenizing, ms.", examples=[0.3])
    compute: FiniteFloat = Field(
        ge=0, description="From the first input's start on the device to the last one's end, ms.", examples=[41.0]
    )
    total: FiniteFloat = Field(ge=0, description="From the parsed request to the finished answer, ms.", examples=[42.1])


class PredictResponse(Answer):
    """Predictions in the order of the inputs."""

    artifact: ArtifactRef = Field(description="Which artifact answered.")
    predictive: PredictiveRef = Field(description="Which predictive was asked for.")
    target_risk: FiniteFloat = Field(
        description="The error rate, 0 to 1, that the decisions were made for.", examples=[0.05]
    )
    predictions: list[PredictionOut] = Field(description="One answer per input, in the inputs' order.")
    timing_ms: Timing = Field(description="Where the time went, milliseconds.")


class MeasureOptions(Strict):
    """How to evaluate."""

    truncate: bool = Field(
        default=False,
        description="Whether to cut inputs that are too long, from the left, instead of 422.",
        examples=[False],
    )
    order_average: bool = Field(
        default=False,
        description="Whether to ask each question in several orders of its choices, as in POST /predict, and measure "
        "the average too: as NAME_order_average beside every method. Limits count an input's orders.",
        examples=[False],
    )
    bins: WholeNumber = Field(
        default=15,
        ge=1,
        le=100,
        description="Number of equal-width confidence bins of ece and reliability.",
        examples=[15],
    )
    resamples: WholeNumber = Field(
        default=1000,
        ge=10,
        le=2000,
        description="Number of bootstrap resamples behind the 95 % intervals.",
        examples=[1000],
    )
    seed: WholeNumber = Field(
        default=0, ge=0, le=2**31 - 1, description="Seed of the bootstrap, a number of no unit.", examples=[0]
    )


class EvaluateOptions(MeasureOptions):
    """How to evaluate, and for how long."""

    timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds the request may take, from its parsed body to its answer, before a 504; what of it still "
        "waits is dropped then. Unset, or more than request_timeout_s: that.",
        examples=[None],
    )


class EvaluateRequest(Strict):
    """Labelled inputs to measure the artifact on."""

    inputs: list[LabelledInput] = Field(
        min_length=1,
        fail_fast=True,
        description="Labelled inputs, at most max_inputs (413 above), with different ids.",
    )
    artifact: str | None = Field(
        default=None,
        max_length=256,
        description="Name of the loaded artifact that answers; unset: the active one.",
        examples=[None],
    )
    options: EvaluateOptions = Field(default_factory=lambda: EvaluateOptions(), description="How to evaluate.")


class ReliabilityBinOut(Answer):
    """One confidence bin (lower, upper]."""

    lower: FiniteFloat = Field(description="Lower edge, a probability.", examples=[0.9])
    upper: FiniteFloat = Field(description="Upper edge, a probability.", examples=[1.0])
    count: int = Field(description="Number of inputs in the bin.", examples=[120])
    confidence: FiniteFloat | None = Field(
        description="Mean confidence, a probability; null in an empty bin.", examples=[0.96]
    )
    accuracy: FiniteFloat | None = Field(
        description="Share of right answers, 0 to 1; null in an empty bin.", examples=[0.95]
    )


class RiskCoverageOut(Answer):
    """Error rate among the inputs kept, as the least certain are set aside."""

    coverage: list[FiniteFloat] = Field(description="Share of inputs kept, 0 to 1.", examples=[[0.5, 1.0]])
    risk: list[FiniteFloat] = Field(description="Error rate among them, 0 to 1.", examples=[[0.02, 0.16]])
    area: FiniteFloat = Field(description="Area under the curve, 0 to 1; lower is better.", examples=[0.05])


class MethodMetrics(Answer):
    """Metrics of one way to get probabilities."""

    accuracy: FiniteFloat = Field(description="Share of right answers, 0 to 1.", examples=[0.84])
    nll: FiniteFloat = Field(description="Mean negative log-likelihood, nats.", examples=[0.374])
    ece: FiniteFloat = Field(description="Expected calibration error, 0 to 1.", examples=[0.036])
    brier: FiniteFloat = Field(
        description="Mean over inputs of the squared error summed over classes, 0 to 2.", examples=[0.23]
    )
    auroc_error: FiniteFloat | None = Field(
        description="How well the uncertainty ranks the mistakes, 0 to 1, 0.5 is chance; null without both outcomes.",
        examples=[0.78],
    )
    auprc_error: FiniteFloat | None = Field(
        description="Average precision of finding the mistakes by the uncertainty, 0 to 1; null without a mistake.",
        examples=[0.41],
    )
    aurc: FiniteFloat = Field(
        description="Area under the risk-coverage curve, 0 to 1; lower is better.", examples=[0.05]
    )
    excess_aurc: FiniteFloat = Field(
        description="The same above the best ranking that the accuracy allows, 0 to 1.", examples=[0.04]
    )
    intervals: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(
        description="95 % bootstrap interval by metric, in the metric's unit.",
        examples=[{"accuracy": [0.81, 0.87], "nll": [0.33, 0.42]}],
    )
    reliability: list[ReliabilityBinOut] = Field(description="Confidence bins, from the lowest.")
    risk_coverage: RiskCoverageOut = Field(
        description="Error rate among the inputs kept, as the least certain are set aside."
    )


class EvaluateResponse(Answer):
    """Metrics by predictive: every one that the artifact carries."""

    artifact: ArtifactRef = Field(description="Which artifact was measured.")
    rows: int = Field(description="Number of inputs measured.", examples=[256])
    methods: dict[str, MethodMetrics] = Field(
        description="Metrics by predictive: map, the recommended one, and every other that the artifact carries."
    )
    timing_ms: Timing = Field(description="Where the time went, milliseconds.")


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
    limit: int | None = Field(default=None, description="The limit that was passed, in its own unit.", examples=[512])
    got: int | None = Field(default=None, description="What came instead, in the limit's unit.", examples=[900])


class JobQuery(MeasureOptions):
    """How to evaluate an upload."""

    model_config = ConfigDict(strict=False)

    artifact: str | None = Field(
        default=None,
        max_length=256,
        description="Name of the artifact that must answer; unset: the active one.",
        examples=[None],
    )

    @property
    def options(self) -> MeasureOptions:
        """All but the artifact."""
        return MeasureOptions(**self.model_dump(exclude={"artifact"}))


class JobResult(Answer):
    """What POST /evaluate would say of the rows that could be scored: metrics by predictive."""

    artifact: ArtifactRef = Field(description="Which artifact answered.")
    rows: int = Field(description="Number of inputs measured.", examples=[20000])
    methods: dict[str, MethodMetrics] = Field(description="Metrics by predictive.")


class PartialMetrics(Answer):
    """Metrics of one predictive on the rows so far, without intervals."""

    accuracy: FiniteFloat = Field(description="Share of right answers, 0 to 1.", examples=[0.84])
    nll: FiniteFloat = Field(description="Mean negative log-likelihood, nats.", examples=[0.374])
    ece: FiniteFloat = Field(description="Expected calibration error, 0 to 1.", examples=[0.036])


class JobPause(Answer):
    """What a paused job waits for; it goes on by itself."""

    code: str = Field(
        description="The error that the job was refused with: queue_full, not_ready, storage_full or another with 429 "
        "or 503.",
        examples=["queue_full"],
    )
    message: str = Field(
        description="What was expected and what came.",
        examples=["2040 rows wait and 40 came, max_queue_rows is 2048: try again later"],
    )


class BadRow(Answer):
    """One line of an upload that could not be scored."""

    line: int = Field(description="Number of the line, from 1.", examples=[17])
    code: str = Field(
        description="The error of POST /evaluate for it: unscorable_input, device_memory or another; device_fault: the "
        "server ended uncleanly, several times, while this row ran.",
        examples=["unscorable_input"],
    )


class JobOut(Answer):
    """A large evaluation and how far it is."""

    id: str = Field(description="Its id.", examples=["7f3c1f0ab5a94f6fa7c3d1b2c4e5f607"])
    status: Literal["queued", "running", "paused", "done", "failed", "cancelled"] = Field(
        description="queued: for its turn; running; paused: waiting for what the field paused says; done: there is a "
        "result; failed: the field error says why; cancelled.",
        examples=["running"],
    )
    owner: str = Field(description="The caller that uploaded it.", examples=["127.0.0.1"])
    artifact: ArtifactRef = Field(description="The artifact that it measures; no other content of it will do.")
    options: MeasureOptions = Field(description="How it evaluates.")
    rows: int = Field(description="Number of inputs in all.", examples=[20000])
    rows_done: int = Field(
        description="Number of inputs that are over, answered or left out, and on disk.", examples=[5120]
    )
    rows_bad: int = Field(
        description="Number of inputs that could not be scored: left out, and no part of any metric. More than "
        "max_job_bad_rows fail the job.",
        examples=[1],
    )
    rows_per_second: FiniteFloat | None = Field(
        description="Number of inputs per second of late, with other jobs' turns between; null while it does not run.",
        examples=[11.5],
    )
    partial: dict[str, PartialMetrics] | None = Field(
        description="Metrics by predictive of the rows done and scored; null before the first."
    )
    bad_rows: list[BadRow] | None = Field(
        description="The lines that could not be scored; null in lists, events, and answers to an upload or a cancel."
    )
    paused: JobPause | None = Field(description="What it waits for; null unless it is paused.")
    error: ErrorDetail | None = Field(description="Why it failed; null unless it did.")
    created_at: AwareDatetime = Field(
        description="When the upload had come, UTC by the server's clock.", examples=["2026-01-31T12:00:00Z"]
    )
    started_at: AwareDatetime | None = Field(
        description="When it began to run; null before.", examples=["2026-01-31T12:00:01Z"]
    )
    finished_at: AwareDatetime | None = Field(
        description="When it ended; null before. job_keep_s later it is removed.", examples=["2026-01-31T12:30:00Z"]
    )
    result: JobResult | None = Field(
        description="The metrics; null unless it is done, and in lists, events, and answers to an upload or a cancel."
    )


class JobsResponse(Answer):
    """The caller's jobs."""

    jobs: list[JobOut] = Field(description="The newest first; everybody's for a caller with the scope admin.")


class JobDeleted(Answer):
    """What became of a job."""

    id: str = Field(description="Its id.", examples=["7f3c1f0ab5a94f6fa7c3d1b2c4e5f607"])
    outcome: Literal["cancelled", "kept", "removed"] = Field(
        description="cancelled: it had not ended, runs no more and is still listed; kept: it ended before you were "
        "told so, and nothing was removed: the next DELETE removes it; removed: it is gone.",
        examples=["cancelled"],
    )


class LiveResponse(Answer):
    """The process answers."""

    status: Literal["live"] = Field(description="Always live.", examples=["live"])


class ReadyResponse(Answer):
    """The artifact answers: a real forward pass and the golden replay succeeded."""

    status: Literal["ready"] = Field(description="Always ready: anything else is a 503.", examples=["ready"])
    artifact: ArtifactRef = Field(description="Which artifact answers.")
    stuck_load: str | None = Field(
        None,
        description="Name of an artifact whose load was given up after load_timeout_s and still runs: no other can be "
        "loaded before it ends, or the server is restarted. Null otherwise.",
        examples=["next-release"],
    )


class V2Live(Answer):
    """Open Inference Protocol liveness."""

    live: bool = Field(description="Always true.", examples=[True])


class V2Ready(Answer):
    """Open Inference Protocol readiness."""

    ready: bool = Field(description="Always true: anything else is a 503.", examples=[True])


class V2Tensor(Answer):
    """Open Inference Protocol tensor description; -1 is any size."""

    name: str = Field(description="Its name.", examples=["probs"])
    datatype: str = Field(description="Its type, in the protocol's words.", examples=["FP64"])
    shape: list[int] = Field(description="Number of entries along each axis; -1 is any.", examples=[[-1, 2]])


class V2Model(Answer):
    """Open Inference Protocol model metadata."""

    name: str = Field(description="The artifact's name.", examples=["sst2-smollm2"])
    versions: list[str] = Field(description="The artifact's digest.", examples=[["sha256:2c26b46b68ffc68f"]])
    platform: Literal["laplora"] = Field(description="Always laplora.", examples=["laplora"])
    inputs: list[V2Tensor] = Field(description="The template's fields.")
    outputs: list[V2Tensor] = Field(description="What POST /predict answers with.")


class RecommendedOut(Answer):
    """The predictive that an artifact recommends, and the comparison that it was chosen by."""

    predictive: str = Field(description="Its name.", examples=["laplace"])
    reason: str = Field(
        description="Why, in one sentence with figures.",
        examples=["laplace: NLL 0.369 on 150 calibration rows, -0.506 against map (95 % -0.785 to -0.250); the lowest"],
    )
    chosen_by: Literal["calibration", "configuration"] = Field(
        description="Who chose it: the figures, or whoever packaged the artifact.", examples=["calibration"]
    )
    table: dict[str, dict[str, FiniteFloat]] = Field(
        description="By predictive, on the calibration split, cross-fitted: nll, its difference to map, and that "
        "difference's 95 % interval, nats.",
        examples=[{"laplace": {"nll": 0.369, "difference_to_map": -0.506, "low": -0.785, "high": -0.25}}],
    )


class WeightsOut(Answer):
    """How the server holds the base model's weights."""

    held: Literal["packed", "expanded", "plain"] = Field(
        description="packed: in 4 bit; expanded: from 4 bit, once at load, the same numbers; plain: never in 4 bit.",
        examples=["expanded"],
    )
    reason: str = Field(
        description="Why, in one sentence; the setting --dequantize asks for one or the other.",
        examples=["the expanded weights fit into memory and are faster on a CPU"],
    )


class ReversePassOut(Answer):
    """How an artifact's Jacobians are computed, which the variances are made of."""

    kind: Literal["written_out", "automatic"] = Field(
        description="written_out: by a reverse pass that was equal to automatic differentiation on one batch, at load; "
        "automatic: by automatic differentiation, the same numbers, slower.",
        examples=["written_out"],
    )
    reason: str = Field(
        description="Why, in one sentence.", examples=["as automatic differentiation gave it on one batch"]
    )


class ArtifactSummary(Answer):
    """One artifact of the root."""

    name: str = Field(description="Its name.", examples=["sst2-smollm2"])
    active: bool = Field(description="Whether it answers requests that name no artifact.", examples=[True])
    loaded: bool = Field(description="Whether requests can name it.", examples=[True])
    requests: int | None = Field(
        description="Number of requests that it is answering now; null unless it is loaded.", examples=[3]
    )
    memory_bytes: int | None = Field(
        description="Memory of its adapters and posteriors in bytes, the base model not counted; null unless loaded.",
        examples=[3_400_000],
    )
    digest: str | None = Field(
        description="Hash of its content; null when it cannot be read.", examples=["sha256:2c26b46b68ffc68f"]
    )
    base_model: str | None = Field(
        description="The base model it was fine-tuned from; null when it cannot be read.",
        examples=["smollm2-135m-instruct"],
    )
    quantization: str | None = Field(
        description="How the base model's weights are stored: nf4, or none; null when it cannot be read.",
        examples=["nf4"],
    )
    labels: list[str] | None = Field(description="Its label words, in order.", examples=[["negative", "positive"]])
    fields: list[str] | None = Field(description="Names of its template's fields.", examples=[["text"]])
    predictives: list[str] | None = Field(
        description="Names that options.predictive can have.", examples=[["map", "laplace"]]
    )
    recommended: RecommendedOut | None = Field(description="The predictive that answers unless another is asked for.")
    metrics: dict[str, Any] | None = Field(
        description="What its manifest records from its own evaluation, by predictive.",
        examples=[{"map": {"nll": 0.834}, "laplace": {"nll": 0.374}}],
    )
    weights: WeightsOut | None = Field(description="How its base model's weights are held; null unless it is loaded.")
    reverse_pass: ReversePassOut | None = Field(description="How its Jacobians are computed; null unless it is loaded.")
    error: str | None = Field(
        description="Why it cannot be served; null where it can be read.", examples=["the manifest is missing"]
    )


class ArtifactsResponse(Answer):
    """The loaded artifacts, and the others of the root, which can be loaded."""

    active: str | None = Field(
        description="Name of the one that answers; null while loading.", examples=["sst2-smollm2"]
    )
    artifacts: list[ArtifactSummary] = Field(description="The active one first, then those of the artifacts root.")


class ActivateResponse(Answer):
    """The artifact that answers from now on where a request names none."""

    artifact: ArtifactRef = Field(description="Which artifact answers now.")
    previous: str | None = Field(description="Name of the one that was active before.", examples=["sst2-smollm2"])
    unloaded: list[str] = Field(description="Names of those that went to make room.", examples=[[]])


class LoadResponse(Answer):
    """The artifact that requests can name from now on."""

    artifact: ArtifactRef = Field(description="Which artifact requests can name now.")
    unloaded: list[str] = Field(
        description="Names of the least recently used ones, which went to make room.", examples=[["sst2-older"]]
    )


class UnloadResponse(Answer):
    """The artifact that takes no new requests; those under way are still answered."""

    artifact: ArtifactRef = Field(description="Which artifact it is.")


class ErrorResponse(Answer):
    """The one shape of every error."""

    error: ErrorDetail = Field(description="What went wrong, for programs and for people.")
    request_id: str = Field(
        description="Also in the X-Request-ID header and in the server's log.",
        examples=["0b6e1c0d3c5f4b0e9a51c1a7f3f0e2d4"],
    )
