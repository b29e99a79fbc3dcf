"""A request for predictions in any protocol, and the endpoints that take one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from laplora.errors import InvalidInputError
from service.http.schemas.inputs import Input
from service.http.schemas.predict import PredictOptions

#: The paths of POST requests for predictions, as the routers write them.
PREDICTING: Final = frozenset({"/predict", "/classify", "/v1/classify", "/v1/systemone", "/tei/predict"})

#: Makes a request's inputs for an artifact whose template has these fields.
Inputs = Callable[[Sequence[str]], Sequence[Input]]


@dataclass(frozen=True)
class Call:
    """A request for predictions.

    Attributes:
        inputs: makes them; count: how many it makes, known before it does.
        artifact: name of the loaded artifact that is to answer; None: the active one.
        has_prediction_ids: whether the answer has a place for the ids that POST /feedback knows predictions by.
    """

    inputs: Inputs
    count: int
    artifact: str | None
    options: PredictOptions
    has_prediction_ids: bool = True


def of_texts(sequences: Sequence[tuple[str, ...]], named: str) -> Inputs:
    """Return what makes inputs of texts without names: each fills the template's fields in order.

    Args:
        sequences: the texts of each input.
        named: what the protocol calls its inputs, for messages.

    The result raises InvalidInputError where a template has another number of fields, or takes choices.
    """

    def inputs(fields: Sequence[str]) -> list[Input]:
        for i, texts in enumerate(sequences):
            if "choices" in fields or len(texts) != len(fields):
                raise InvalidInputError(
                    f"input {i} has {len(texts)} texts without a name, the artifact's inputs have the fields "
                    f"{list(fields)}: name them, in POST /predict",
                    field=named,
                )
        return [Input.model_validate(dict(zip(fields, texts, strict=True))) for texts in sequences]

    return inputs
