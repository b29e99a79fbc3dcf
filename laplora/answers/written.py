"""An answer as JSON has it: what ``POST /predict``, ``laplora predict`` and a report of rows are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from laplora.errors import NonFiniteError

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction


def written_answer(
    prediction: Prediction, fields: Mapping[str, Any], *, id: str | float | None = None, covariance: bool = False
) -> dict[str, Any]:
    """Return an answer's fields as JSON values, in the order in which they are written.

    What was not asked for, such as an id that the input has not, is left out.

    Args:
        fields: of the input, by name.
        covariance: whether ``logit_covariance`` is among them (classes x classes, squared nats).

    Raises:
        NonFiniteError: a number in it is not finite.
    """
    p = prediction

    def by_label(values: list[float]) -> dict[str, float]:
        return dict(zip(p.labels, values, strict=True))

    label, choices = p.labels[p.label_index], fields.get("choices")
    uncertainty = {"total": p.total, "aleatoric": p.aleatoric, "epistemic": p.epistemic}
    has_spread = None not in uncertainty.values()
    if p.order_information is not None:
        uncertainty["order"] = p.order_information
    answer = {
        **({} if id is None else {"id": id}),
        "label": label,
        **({} if p.labels_present is None else {"labels": p.labels_present}),
        "label_text": choices[p.label_index] if isinstance(choices, list | tuple) else label,
        "answered_by": p.predictive,
        "map_probs": by_label(p.map_probs),
        "probs": by_label(p.probs),
        "probs_std": None if p.probs_std is None else by_label(p.probs_std),
        "calibrated_probs": {name: by_label(probs) for name, probs in p.calibrated_probs.items()},
        "logit_mean": p.logit_mean,
        "logit_variance": p.logit_variance,
        **({"logit_covariance": p.logit_covariance} if covariance else {}),
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
    if not _all_finite(answer):
        raise NonFiniteError("the model has no finite answer to this input: change it or leave it out")
    return answer


def _all_finite(value: Any) -> bool:
    """Return whether every number in a JSON value is finite."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return all(map(_all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
