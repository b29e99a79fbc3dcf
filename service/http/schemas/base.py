"""The parts of every body: strict requests, finite answers, probabilities, and the times of an answer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, WithJsonSchema

# Finite is enforced, the range only documented: rounding may leave 1.0000001.
Probability = Annotated[FiniteFloat, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
Probabilities = dict[str, Probability]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: JSON has one kind of number: 15.0 is the integer 15 to JSON Schema, and what some languages write for it.
WholeNumber = Annotated[int, BeforeValidator(_whole)]


#: Fields that several requests have.
ArtifactName = Annotated[
    str | None,
    Field(
        max_length=256, description="Name of the loaded artifact that answers; unset: the active one.", examples=[None]
    ),
]
TimeoutSeconds = Annotated[
    float | None,
    Field(
        gt=0,
        description="Seconds the request may take, from its parsed body to its answer, before a 504; what of it still "
        "waits is dropped then. Unset, or more than request_timeout_s: that.",
        examples=[None],
    ),
]


class Strict(BaseModel):
    """Base of request models. A field's meaning is its description, or the text below it."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Answer(BaseModel):
    """Base of response models; a NaN or an infinity cannot leave through one."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid", use_attribute_docstrings=True)


class Timing(Answer):
    """The time of each stage, milliseconds."""

    queue: FiniteFloat = Field(ge=0, examples=[0.4])
    """From queueing until the first input reached the device, ms."""
    tokenize: FiniteFloat = Field(ge=0, description="Rendering and tokenizing, ms.", examples=[0.3])
    compute: FiniteFloat = Field(ge=0, examples=[41.0])
    """From the first input's start on the device to the last one's end, ms."""
    total: FiniteFloat = Field(ge=0, description="From the parsed request to the finished answer, ms.", examples=[42.1])
