"""A prediction as the contract writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

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
        UnscorableInputError: a number in it is not finite, or is no probability.
    """
    p = prediction

    def by_label(values: list[float]) -> dict[str, float]:
        return dict(zip(p.labels, values, strict=True))

    label = p.labels[p.label_index]
    choices = item.template_fields.get("choices")
    parts = {"total": p.total, "aleatoric": p.aleatoric, "epistemic": p.epistemic}
    has_spread = None not in parts.values()
    # Only what is set is sent: an id that was not given and a covariance that was not asked for are left out.
    optional: dict[str, object] = {} if item.id is None else {"id": item.id}
    if p.labels_present is not None:
        optional["labels"] = p.labels_present
    if options.covariance:
        optional["logit_covariance"] = p.logit_covariance
    if p.order_information is not None:
        optional["orders"] = p.orders
        parts["order"] = p.order_information
    try:
        return PredictionOut.model_validate(
            {
                **optional,
                "label": label,
                "label_text": choices[p.label_index] if isinstance(choices, list) else label,
                "answered_by": p.predictive,
                "map_probs": by_label(p.map_probs),
                "probs": by_label(p.probs),
                "probs_std": None if p.probs_std is None else by_label(p.probs_std),
                "calibrated_probs": {name: by_label(probs) for name, probs in p.calibrated_probs.items()},
                "logit_mean": p.logit_mean,
                "logit_variance": p.logit_variance,
                "uncertainty": parts if has_spread else None,
                "label_mass": p.label_mass,
                "familiarity": p.familiarity,
                "score": p.score,
                "prediction_set": list(p.prediction_set),
                "flags": list(p.flags),
                "decision": p.decision,
                "tokens": p.tokens,
                "truncated": p.truncated,
            }
        )
    except ValidationError:
        raise UnscorableInputError(
            f"the model has no finite answer for input {index}: change or leave out that input", field=f"inputs.{index}"
        ) from None
