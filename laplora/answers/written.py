"""An answer as JSON has it: what ``POST /predict``, ``laplora predict`` and a report of rows are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from laplora.errors import NonFiniteError

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction


def written_answer(
    prediction: Prediction, fields: Mapping[str, Any], *, id: str | float | None = None
) -> dict[str, Any]:
    """Return an answer's fields as JSON values, in the order in which they are written.

    What was not asked for, such as an id that the input has not, is left out; ``logit_covariance`` is always.

    Args:
        fields: of the input, by name.

    Raises:
        NonFiniteError: a number in it is not finite.
    """
    p = prediction
    if not p.finite:
        raise NonFiniteError("the model has no finite answer to this input: change it or leave it out")
    label, choices = p.labels[p.label_index], fields.get("choices")
    uncertainty = {"total": p.total, "aleatoric": p.aleatoric, "epistemic": p.epistemic}
    has_spread = None not in uncertainty.values()
    if p.order_information is not None:
        uncertainty["order"] = p.order_information
    return {
        **({} if id is None else {"id": id}),
        "label": label,
        **({} if p.labels_present is None else {"labels": p.labels_present}),
        "label_text": choices[p.label_index] if isinstance(choices, list | tuple) else label,
        "answered_by": p.predictive,
        "map_probs": p.map_probs,
        "probs": p.probs,
        "probs_std": p.probs_std,
        "calibrated_probs": p.calibrated_probs,
        "logit_mean": p.logit_mean.tolist(),
        "logit_variance": None if p.logit_variance is None else p.logit_variance.tolist(),
        "uncertainty": uncertainty if has_spread else None,
        "label_mass": p.label_mass,
        "familiarity": p.familiarity,
        "score": p.score,
        "prediction_set": list(p.prediction_set),
        "flags": list(p.flags),
        "decision": p.decision,
        "tokens": p.tokens,
        **({} if p.order_information is None else {"orders": p.orders}),
        "truncated": p.truncated,
    }
