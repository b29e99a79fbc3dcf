"""Bodies of vLLM's classification API: POST /classify and GET /v1/models."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, FiniteFloat, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from laplora.decisions.thresholds import Decision, Flag
from service.http.schemas.artifacts import QuestionOut
from service.http.schemas.base import Answer, Foreign, Probability, WholeNumber


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    first = texts[0] if isinstance(texts, list) and texts else None
    if isinstance(first, int | list):
        raise PydanticCustomError("token_ids", "Token ids are not taken: send a text, or a list of texts")
    if first is None or not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("texts", "Input should be a text, or a list of one text or more")
    return list(texts)


_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}


class ClassifyRequest(Foreign):
    """vLLM's request to classify. Fields that are not listed here are ignored, as vLLM does."""

    unsupported: ClassVar[dict[str, str]] = {
        "messages": "the artifact's template makes the prompt of one text, send it as input",
        "mm_processor_kwargs": "only text is classified",
        "truncation_side": "the artifact says which side is cut, leave it out",
    }

    model: str | None = Field(None, max_length=256, examples=[None])
    """Name of the loaded artifact that answers; unset: the active one."""
    input: Annotated[list[str], PlainValidator(_texts), WithJsonSchema(_TEXTS)] = Field(
        examples=[["a gripping film ."]]
    )
    """A text, or a list of at most max_inputs of them (413 above); no token ids. Each fills the one field of the
    artifact's template.
    """
    use_activation: bool | None = Field(
        None, validation_alias=AliasChoices("use_activation", "activation", "softmax"), examples=[True]
    )
    """Whether probs are probabilities. false: the centred logits of the fine-tuned model, nats. The older names
    activation and softmax are taken too.
    """
    truncate_prompt_tokens: WholeNumber | None = Field(None, ge=-1, le=-1, examples=[None])
    """-1 cuts inputs that are too long at the artifact's limit, in tokens; unset: 422. No other limit can be set."""
    add_special_tokens: Literal[True] = Field(True, description="Always true: as the artifact was trained.")
    priority: WholeNumber = Field(0, ge=0, le=0, description="Always 0, a number of no unit.")
    request_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._:-]{1,128}$", examples=[None])
    """Comes back in id; unset: the request's X-Request-ID."""


class LaploraDetails(Answer):
    """laplora's fields beside vLLM's, as in POST /predict. Lists of numbers are in the order of probs."""

    answered_by: str = Field(description="The predictive that made this answer.", examples=["laplace"])
    probs_std: list[FiniteFloat] | None = Field(examples=[[0.11, 0.11]])
    """Standard deviation of each probability over the weights; null where there is none."""
    epistemic: FiniteFloat | None = Field(examples=[0.06])
    """Mutual information of label and weights, nats; null where there is none."""
    aleatoric: FiniteFloat | None = Field(examples=[0.41])
    """Expected entropy under the posterior, nats; null where there is none."""
    familiarity: Probability | None = Field(examples=[0.63])
    """How like the training rows the input is, 0 to 1; null where the artifact does not tell."""
    score: FiniteFloat = Field(description="Review score, of no unit: higher is more likely wrong.", examples=[0.47])
    labels: list[str] | None = Field(examples=[None])
    """Labels that are present, where several may be right; else null."""
    prediction_set: list[str] = Field(description="Conformal set of labels.", examples=[["positive"]])
    flags: list[Flag] = Field(description="Why the answer deserves a look.", examples=[["high_epistemic"]])
    decision: Decision = Field(description="Use the answer, or show it to a person.", examples=["review"])
    decision_reason: str = Field(examples=["0.82 is below 0.91, the threshold for a 5 % error rate"])
    """Why, in one sentence with figures: probabilities, of more than two labels entropies, nats."""
    truncated: bool = Field(description="Whether the prompt was cut.", examples=[False])
    prediction_id: str | None = Field(examples=["gJ3mGpXbHk1TzqJm0yQe2A"])
    """The id of this answer for POST /feedback; null where the server keeps none."""


class ClassifyData(Answer):
    """One input's answer, as vLLM writes it, and laplora's beside it."""

    index: int = Field(description="Number of inputs before it.", examples=[0])
    label: str | None = Field(description="Most probable label.", examples=["positive"])
    probs: list[FiniteFloat] = Field(examples=[[0.18, 0.82]])
    """Probabilities in the order of the artifact's labels, of the predictive that it recommends; with use_activation
    false centred logits, nats.
    """
    num_classes: int = Field(description="Number of classes.", examples=[2])
    laplora: LaploraDetails = Field(description="The fields of laplora.")


class UsageInfo(Answer):
    """Tokens, as vLLM counts them."""

    prompt_tokens: int = Field(description="Tokens of all prompts.", examples=[61])
    total_tokens: int = Field(description="Tokens of all prompts.", examples=[61])
    completion_tokens: int = Field(0, description="Always 0 tokens: nothing is generated.", examples=[0])
    prompt_tokens_details: None = Field(None, description="Always null.", examples=[None])


class ClassifyResponse(Answer):
    """vLLM's answer."""

    id: str = Field(description="classify- and the request's id.", examples=["classify-9bf17f2847b046c7"])
    object: Literal["list"] = Field("list", description="Always list.", examples=["list"])
    created: int = Field(description="When it was answered, seconds since 1970, UTC.", examples=[1745383213])
    model: str = Field(description="Name of the artifact that answered.", examples=["fields-smollm2"])
    data: list[ClassifyData] = Field(description="One answer per input, in the inputs' order.")
    usage: UsageInfo = Field(description="Tokens.")


class ModelCard(Answer):
    """A loaded artifact, as vLLM lists models."""

    id: str = Field(description="The artifact's name.", examples=["fields-smollm2"])
    object: Literal["model"] = Field("model", description="Always model.", examples=["model"])
    created: int = Field(description="When it was asked, seconds since 1970, UTC.", examples=[1745383213])
    owned_by: Literal["laplora"] = Field("laplora", description="Always laplora.", examples=["laplora"])
    root: str = Field(description="The base model.", examples=["smollm2-135m-instruct"])
    parent: None = Field(None, description="Always null.", examples=[None])
    max_model_len: int = Field(description="Tokens that a prompt may have.", examples=[512])
    permission: list[str] = Field([], description="Always empty.", examples=[[]])
    question: QuestionOut | None = Field(description="The question that it answers in POST /v1/systemone, or null.")


class SystemOneModel(Answer):
    """A name that POST /v1/systemone takes as model."""

    name: str = Field(description="The artifact's name, or jev-latest.", examples=["fields-smollm2"])
    description: str = Field(description="What it answers.", examples=["choice: Is it spam?"])
    release_date: str = Field(description="The day of the artifact, YYYY-MM-DD.", examples=["2026-12-01"])


class ModelList(Answer):
    """The loaded artifacts, the active one first: data for clients of vLLM and OpenAI, models for decision models'."""

    object: Literal["list"] = Field("list", description="Always list.", examples=["list"])
    data: list[ModelCard] = Field(description="One per artifact.")
    models: list[SystemOneModel] = Field(description="The same, and jev-latest: whichever answers a question.")


class VllmError(Answer):
    """An error, as vLLM and OpenAI write it."""

    message: str = Field(
        description="The expected and the given value, and what to do.", examples=["the queue is full"]
    )
    type: str = Field(description="The error's code: it never changes.", examples=["queue_full"])
    param: str | None = Field(None, description="Path of the field at fault.", examples=["input"])
    code: int = Field(description="The HTTP status, a number of no unit.", examples=[429])


class VllmErrorResponse(Answer):
    """The body of an error of vLLM's endpoints."""

    error: VllmError = Field(description="The error.")
