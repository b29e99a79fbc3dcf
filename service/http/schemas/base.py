"""The parts of every body: strict requests, finite answers, probabilities, and the times of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, WithJsonSchema, model_validator

from laplora.decisions.wanted import Costs, Risks, Wanted
from laplora.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from service.scoring.model import Model

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


class Deciding(Strict):
    """The target risk or costs that decide whether an answer is accepted."""

    target_risk: Risks | None = Field(None, examples=[None])
    """Error rate that accepted answers may have, or that of each answered label, with * for all others. Decisions are
    made for it. Unset: the artifact's.
    """
    costs: Costs | None = Field(None, examples=[None])
    """In place of target_risk, what a wrong answer and a person's look cost. The label of least expected cost answers,
    and is accepted if it is expected to cost at most the look.
    """

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.costs is not None and self.target_risk is not None:
            raise ValueError("costs and target_risk exclude each other")
        return self

    @property
    def wanted(self) -> Wanted | None:
        """The target risk or costs that decide; None: what the artifact states."""
        return self.target_risk if self.costs is None else self.costs

    def check(self, model: Model, predictive: str) -> None:
        """Raise InvalidInputError where labels are named that an artifact does not have, before it answers."""
        try:
            if isinstance(self.wanted, Mapping | Costs):
                model.nothing_accepted(predictive, self.wanted)
        except ConfigError as error:
            where = "target_risk" if self.costs is None else "costs"
            raise InvalidInputError(str(error), field=f"options.{where}") from None


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
