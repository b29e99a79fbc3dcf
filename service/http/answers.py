"""A prediction as the contract has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laplora.answers.written import written_answer
from laplora.errors import NonFiniteError
from service.errors import UnscorableInputError
from service.http.schemas.inputs import Input
from service.http.schemas.predict import PredictionOut, PredictOptions

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction


def prediction_out(index: int, item: Input, prediction: Prediction, options: PredictOptions) -> PredictionOut:
    """Return one prediction as the contract writes it.

    Raises:
        UnscorableInputError: a number in it is not finite.
    """
    try:
        answer = written_answer(prediction, item.template_fields, id=item.id, covariance=options.covariance)
    except NonFiniteError:
        raise UnscorableInputError(
            f"the model has no finite answer for input {index}: change or leave out that input", field=f"inputs.{index}"
        ) from None
    return PredictionOut.model_validate(answer)
