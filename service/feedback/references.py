"""An artifact's record of a predictive: the reference of its metrics in production."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from service.feedback.records import Reference, Signal

if TYPE_CHECKING:
    from service.scoring.model import Model


def reference_of(model: Model, predictive: str) -> Reference:
    """Return what the artifact records of a predictive; of a name that it does not have, nothing is calibrated."""
    manifest = model.artifact.manifest
    calibration = manifest.calibration
    several = manifest.likelihood == "bernoulli"
    # If several labels may be right, the rows of metrics are the labels of inputs.
    each = len(manifest.labels) if several else 1
    stated = Reference(coverage=calibration.coverage, calibration_rows=calibration.rows)
    record = {str(name): spec for name, spec in manifest.predictives.items()}.get(predictive)
    if record is None:
        return stated
    metrics = manifest.metrics.get(predictive)
    metrics = metrics if isinstance(metrics, dict) else {}
    rows = metrics.get("rows")
    measured: dict[str, Any] = {
        name: _number(metrics.get(name)) for name in ("accuracy", "nll", "ece", "brier", "auroc_error")
    }
    reference = replace(stated, rows=rows // each if isinstance(rows, int) and rows > 0 else 0, **measured)
    rule = record.thresholds.review
    ranks: list[Signal] = ["score"]
    # Between two classes the entropy of the answer falls as its confidence grows: the same gap, and the same p-value.
    answers_entropy = rule.score == "total_entropy" or (rule.score == "map_entropy" and predictive == "map")
    if answers_entropy and len(manifest.labels) == 2 and not several:
        ranks.append("confidence")
    scores = model.review_scores
    return replace(
        reference,
        scores=scores[predictive].score if predictive in scores else None,
        ranked_by_map=rule.score != "total_entropy",
        scores_rank=tuple(ranks),
    )


def _number(value: Any) -> float | None:
    """Return a metric of the manifest's free-form part, None unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
