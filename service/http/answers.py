"""A prediction as the contract has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from laplora.answers.written import written_answer
from laplora.errors import NonFiniteError
from service.errors import UnscorableInputError
from service.http.schemas.inputs import Input
from service.http.schemas.predict import PredictionOut, PredictOptions

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction


#: What is not kept of a job's answers: the id is the row's own, the label's text may be a part of its prompt, and the
#: rest can be large.
_NOT_KEPT = {"id", "label_text", "calibrated_probs", "logit_mean", "logit_variance"}


def row_answer(row: int, fields: Mapping[str, Any], prediction: Prediction) -> str:
    """Return what is kept of the answer to a job's row, JSON: as of POST /predict, but for ``_NOT_KEPT``.

    Raises:
        UnscorableInputError: as ``prediction_out``.
    """
    item = Input.model_construct(None, **fields)
    out = prediction_out(row, item, prediction, PredictOptions())
    return out.model_dump_json(exclude=_NOT_KEPT, exclude_unset=True)


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
