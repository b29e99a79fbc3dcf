"""One input of a request, and one with its true label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError, PydanticKnownError

_EXAMPLE_INPUT: dict[str, Any] = {"id": "a1", "text": "a gripping, funny, beautifully acted film ."}
_EXAMPLE_QUESTION: dict[str, Any] = {
    "id": "a2",
    "question": "The trophy did not fit into the suitcase because the _ was too large.",
    "choices": ["trophy", "suitcase"],
}
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
        """The fields that were sent beside this model's own."""
        return dict(self.__pydantic_extra__ or {})


#: Longest label, in characters.
_LABEL_CHARS = 256


def _label(value: Any) -> Any:
    """Return a label or a list of labels; what is wrong with it is said of the field, whatever the list holds."""
    several = isinstance(value, list)
    for one in value if several else [value]:
        if not isinstance(one, str):
            raise PydanticCustomError("label_type", "Input should be a valid string, or a list of them")
        if len(one) > _LABEL_CHARS:
            raise PydanticKnownError("string_too_long", {"max_length": _LABEL_CHARS})
    if several and len(set(value)) < len(value):
        raise PydanticCustomError("label_twice", "A list of labels should have each once")
    return value


_LABEL_SCHEMAS: list[dict[str, Any]] = [
    {"type": "string", "maxLength": _LABEL_CHARS},
    {"type": "array", "items": {"type": "string", "maxLength": _LABEL_CHARS}, "uniqueItems": True},
]
#: One label, or where several may be right the list of those that are.
Label = Annotated[
    Any,
    BeforeValidator(_label),
    WithJsonSchema({"anyOf": _LABEL_SCHEMAS}),
]


def _soft_label(value: Any) -> Any:
    """Return a label, a list of labels, or probabilities by label."""
    if not isinstance(value, dict):
        return _label(value)
    for name, share in value.items():
        _label(name)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1.001:
            raise PydanticCustomError("label_type", "The probabilities of a label should be numbers from 0 to 1")
    return value


#: A label, or the probabilities of labels, those not named 0.
SoftLabel = Annotated[
    Any,
    BeforeValidator(_soft_label),
    WithJsonSchema(
        {
            "anyOf": [
                *_LABEL_SCHEMAS,
                {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}, "minProperties": 1},
            ]
        }
    ),
]


class LabelledInput(Input):
    """One input and its true label, or labels."""

    model_config = ConfigDict(
        json_schema_extra=_with_fields([{**_EXAMPLE_INPUT, "label": "positive"}, {**_EXAMPLE_QUESTION, "label": "A"}])
    )

    label: SoftLabel = Field(
        description="True label: one of the artifact's label words, or an object of their probabilities, which sum to "
        "1. If several may be right: the list of those that are, which may be empty."
    )


class JobInput(LabelledInput):
    """One input of a job: its true label, or labels, may be left out, or null."""

    label: Label | None = Field(  # type: ignore[assignment]
        None,
        description="True label: one of the artifact's label words. If several may be right: the list of those that "
        "are, which may be empty.",
    )
