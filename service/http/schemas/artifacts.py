"""Bodies of /artifacts, and the few words that name an artifact in other answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat

from service.http.schemas.base import Answer


class ArtifactRef(Answer):
    """Which artifact answered."""

    name: str = Field(description="Its name.", examples=["fields-smollm2"])
    digest: str = Field(description="Hash of its content.", examples=["sha256:2c26b46b68ffc68f"])
    base_model: str = Field(description="The base model it was fine-tuned from.", examples=["smollm2-135m-instruct"])
    quantization: str = Field(description="How the base model's weights are held: nf4, or none.", examples=["nf4"])


class RecommendedOut(Answer):
    """The predictive that an artifact recommends, and the comparison that it was chosen by."""

    predictive: str = Field(description="Its name.", examples=["laplace"])
    reason: str = Field(
        examples=[
            "laplace has an NLL of 0.369 nats on the 150 calibration rows that chose it, -0.506 against map, the "
            "fine-tuned model alone (95 % -0.785 to -0.250); the lowest of all"
        ]
    )
    """Why, in one sentence with figures."""
    chosen_by: Literal["calibration", "configuration", "labels"] = Field(examples=["calibration"])
    """Who chose it: the figures, or whoever packaged the artifact."""
    table: dict[str, dict[str, FiniteFloat]] = Field(
        examples=[{"laplace": {"nll": 0.369, "difference_to_map": -0.506, "low": -0.785, "high": -0.25}}]
    )
    """By predictive, on the calibration split, cross-fitted: nll, its difference to map, and that difference's 95 %
    interval, nats.
    """


class MeasuredSetsOut(Answer):
    """The prediction sets of one predictive on the artifact's own test rows."""

    empirical_coverage: float = Field(ge=0, le=1, examples=[0.915])
    """Share of the inputs whose set holds the true label, 0 to 1; of the right labels, where several may be right."""
    mean_size: float = Field(description="Number of labels in a set, on average.", ge=0, examples=[1.18])
    rows: int = Field(description="Number of test inputs.", ge=1, examples=[422])


class PredictionSetsOut(Answer):
    """The guarantee of prediction_set in an answer, and its measured coverage."""

    nominal_coverage: float = Field(gt=0, lt=1, examples=[0.9])
    """Share of inputs like the calibration rows whose set is to hold the true label, 0 to 1."""
    calibration_rows: int = Field(description="Number of rows it was calibrated on.", ge=0, examples=[150])
    measured: dict[str, MeasuredSetsOut] = Field(
        examples=[{"laplace": {"empirical_coverage": 0.915, "mean_size": 1.199, "rows": 422}}]
    )
    """By predictive, what its manifest records from its own evaluation; empty where it records none."""


class WeightsOut(Answer):
    """How the server holds the base model's weights."""

    held: Literal["packed", "expanded", "plain"] = Field(examples=["expanded"])
    """packed: in 4 bit; expanded: from 4 bit, once at load, the same numbers; plain: never in 4 bit."""
    reason: str = Field(examples=["the expanded weights fit into memory and are faster on a CPU"])
    """Why, in one sentence; the setting --dequantize asks for one or the other."""


class ReversePassOut(Answer):
    """How an artifact's Jacobians are computed, which the variances are made of."""

    kind: Literal["written_out", "automatic"] = Field(examples=["written_out"])
    """written_out: by a reverse pass that was equal to automatic differentiation on one batch, at load; automatic: by
    automatic differentiation, the same numbers, slower.
    """
    reason: str = Field(examples=["as automatic differentiation gave it on one batch"])
    """Why, in one sentence."""


class TokenBudgetOut(Answer):
    """How large a batch of an artifact's rows may be."""

    tokens: int = Field(examples=[512])
    """Most padded tokens of a batch: rows times the longest row. Batches have at most the least of all loaded
    artifacts.
    """
    reason: str = Field(examples=["a CPU gains little from larger batches"])
    """Why: what was measured on the device at load, or the setting --batch-tokens."""


class QuestionOut(Answer):
    """The question that an artifact answers in POST /v1/systemone, as a request has to send it."""

    type: Literal["choice", "noul", "score"] = Field(description="Of what kind.", examples=["choice"])
    instructions: str | dict[str, Any] | list[Any] | None = Field(
        description="The question, or null.", examples=["Is it spam?"]
    )
    criteria: dict[str, Any] | list[Any] | None = Field(examples=[{"negative": "bad", "positive": "good"}])
    """The options; null: any, the artifact is one of multiple choice."""
    fewest_options: int = Field(description="Number of options that a request has at least.", examples=[2])
    most_options: int = Field(description="Number of options that a request has at most.", examples=[2])
    labels: list[str] = Field(examples=[["negative", "positive"]])
    """The artifact's labels in the order of the options, as POST /feedback takes them."""
    state: dict[str, str | None] = Field(examples=[{"text": "text"}])
    """By field of the template the key of a state that fills it, null for the whole state."""


class ArtifactSummary(Answer):
    """One artifact of the root."""

    name: str = Field(description="Its name.", examples=["fields-smollm2"])
    active: bool = Field(description="Whether it answers requests that name no artifact.", examples=[True])
    loaded: bool = Field(description="Whether requests can name it.", examples=[True])
    requests: int | None = Field(examples=[3])
    """Number of requests that it is answering now; null unless it is loaded."""
    memory_bytes: int | None = Field(examples=[3_400_000])
    """Memory of its adapters and posteriors in bytes, the base model not counted; null unless loaded."""
    digest: str | None = Field(examples=["sha256:2c26b46b68ffc68f"])
    """Hash of its content; null when it cannot be read."""
    base_model: str | None = Field(examples=["smollm2-135m-instruct"])
    """The base model it was fine-tuned from; null when it cannot be read."""
    quantization: str | None = Field(examples=["nf4"])
    """How the base model's weights are stored: nf4, or none; null when it cannot be read."""
    labels: list[str] | None = Field(description="Its label words, in order.", examples=[["negative", "positive"]])
    label_changes: list[Any] | None = Field(description="Changes of them, oldest first.", examples=[[]])
    fields: list[str] | None = Field(description="Names of its template's fields.", examples=[["text"]])
    corrects: str | None = Field(examples=[None])
    """Name of the decision model whose answers it corrects; null: none's, or it cannot be read."""
    question: QuestionOut | None
    """The question that it answers in POST /v1/systemone; null: none, or it cannot be read."""
    predictives: list[str] | None = Field(examples=[["map", "laplace"]])
    """Names that options.predictive can have."""
    recommended: RecommendedOut | None = Field(description="The predictive that answers unless another is asked for.")
    metrics: dict[str, Any] | None = Field(examples=[{"map": {"nll": 0.834}, "laplace": {"nll": 0.374}}])
    """The metrics of its own evaluation in its manifest, by predictive."""
    prediction_sets: PredictionSetsOut | None
    """The guarantee of its prediction sets, and their coverage on its own test rows; null when it cannot be read."""
    weights: WeightsOut | None = Field(description="How its base model's weights are held; null unless it is loaded.")
    reverse_pass: ReversePassOut | None = Field(description="How its Jacobians are computed; null unless it is loaded.")
    token_budget: TokenBudgetOut | None = Field(description="How large its batches may be; null unless it is loaded.")
    report: str | None = Field(examples=["/artifacts/fields-smollm2/report"])
    """Path of the page that it brings along; null where it brings none."""
    error: str | None = Field(examples=["the manifest is missing"])
    """Why it cannot be served; null where it can be read."""


class ArtifactsResponse(Answer):
    """The loaded artifacts, and the others of the root, which can be loaded."""

    active: str | None = Field(examples=["fields-smollm2"])
    """Name of the one that answers; null while loading."""
    artifacts: list[ArtifactSummary] = Field(description="The active one first, then those of the artifacts root.")


class ActivateResponse(Answer):
    """The artifact that answers from now on where a request names none."""

    artifact: ArtifactRef = Field(description="Which artifact answers now.")
    previous: str | None = Field(description="Name of the one that was active before.", examples=["fields-smollm2"])
    unloaded: list[str] = Field(description="Names of those that went to make room.", examples=[[]])


class LoadResponse(Answer):
    """The artifact that requests can name from now on."""

    artifact: ArtifactRef = Field(description="Which artifact requests can name now.")
    unloaded: list[str] = Field(examples=[["sst2-older"]])
    """Names of the least recently used ones, which went to make room."""


class UnloadResponse(Answer):
    """The artifact that takes no new requests; those under way are still answered."""

    artifact: ArtifactRef = Field(description="Which artifact it is.")
