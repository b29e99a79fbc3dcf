"""Bodies of text-embeddings-inference's POST /tei/predict and GET /tei/info."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, FiniteFloat, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.http.schemas.base import Answer, Foreign


@dataclass(frozen=True)
class TeiInputs:
    """Sequences to classify, each a text or a pair; ``batch``: whether the answer is a list of lists."""

    sequences: list[tuple[str, ...]]
    batch: bool


def _sequence(value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and 1 <= len(value) <= 2 and all(isinstance(text, str) for text in value):
        return tuple(value)
    raise PydanticCustomError(
        "tei_inputs", "Input should be a text, a pair of texts, or a batch of them, each in a list: [[text], [text]]"
    )


def _inputs(value: Any) -> TeiInputs:
    """Return what ``inputs`` means: ``[a, b]`` is one pair, not a batch."""
    if isinstance(value, str):
        return TeiInputs([(value,)], batch=False)
    if isinstance(value, list) and value and isinstance(value[0], list):
        return TeiInputs([_sequence(one) for one in value], batch=True)
    return TeiInputs([_sequence(value)], batch=False)


_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}


class TeiPredictRequest(Foreign):
    """text-embeddings-inference's request to classify. Fields that are not listed here are ignored, as TEI does."""

    unsupported: ClassVar[dict[str, str]] = {
        "truncation_direction": "the artifact says which side is cut, leave it out",
    }

    # A ``TeiInputs``; said so, it would be in the document.
    inputs: Annotated[
        Any,
        PlainValidator(_inputs),
        WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS, {"type": "array", "items": _TEXTS, "minItems": 1}]}),
    ] = Field(examples=["a gripping film ."])
    """A text, a pair of texts, or a batch of at most max_inputs (413 above) of them, each in a list of its own. A text
    fills the one field of the artifact's template, a pair the two fields.
    """
    raw_scores: bool = False
    """Whether scores are the centred logits of the fine-tuned model, nats, and not probabilities."""
    truncate: bool | None = Field(None, examples=[False])
    """Whether to cut inputs that are too long, where the artifact cuts them, instead of 422."""


class TeiPrediction(Answer):
    """One label and its score, as text-embeddings-inference writes it."""

    score: FiniteFloat = Field(examples=[0.82])
    """Probability of the label, of the predictive that the artifact recommends; with raw_scores a centred logit, nats.
    """
    label: str = Field(description="The label.", examples=["positive"])


class TeiErrorResponse(Answer):
    """The body of an error, as text-embeddings-inference writes it."""

    error: str = Field(description="The expected and the given value, and what to do.", examples=["the queue is full"])
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation"] = Field(examples=["Overloaded"])
    """Overloaded: 429; Unhealthy: 503; Backend: 500 and 504; Validation: any other."""


class TeiClassifier(Answer):
    """The labels by their numbers, and back."""

    id2label: dict[str, str] = Field(description="Label by number.", examples=[{"0": "negative", "1": "positive"}])
    label2id: dict[str, int] = Field(description="Number of each label.", examples=[{"negative": 0, "positive": 1}])


class TeiModelType(Answer):
    """The kind of the model."""

    classifier: TeiClassifier = Field(description="Always a classifier.")


class TeiInfo(Answer):
    """The active artifact and this server's limits, as text-embeddings-inference describes itself."""

    model_id: str = Field(description="The artifact's name.", examples=["fields-smollm2"])
    model_sha: str = Field(description="The artifact's digest.", examples=["sha256:2c26b46b68ffc68f"])
    model_dtype: str = Field(description="Type of the base model's numbers.", examples=["bfloat16"])
    model_type: TeiModelType = Field(description="The kind of the model.")
    max_concurrent_requests: int = Field(description="Number of requests at once.", examples=[512])
    max_input_length: int = Field(description="Tokens that a prompt may have.", examples=[512])
    max_batch_tokens: int = Field(description="Tokens of one batch.", examples=[512])
    max_batch_requests: None = Field(None, description="Always null: tokens bound a batch.", examples=[None])
    max_client_batch_size: int = Field(description="Number of inputs that a request may have.", examples=[256])
    auto_truncate: Literal[False] = Field(False, description="Always false.", examples=[False])
    tokenization_workers: int = Field(description="Number of threads that tokenize.", examples=[2])
    version: str = Field(description="Version of this server's HTTP contract.", examples=["1.0"])
    sha: None = Field(None, description="Always null.", examples=[None])
    docker_label: None = Field(None, description="Always null.", examples=[None])
