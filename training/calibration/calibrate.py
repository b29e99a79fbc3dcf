"""Calibrators, thresholds and the recommendation, all from the calibration split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from laplora.answers.review_scores import ReviewScores, review_scores, score_tensors
from laplora.artifact.manifest import SCORES, CalibrationRecord, PredictiveRecord, RecommendedRecord
from laplora.decisions.conformal import fit_label_sets
from laplora.decisions.recommendation import recommend
from laplora.decisions.review import Sureness, fit_thresholds, sureness_of
from laplora.linearised import PosteriorPredictive
from laplora.metrics.scores import row_nll
from laplora.posterior.base import Prior, ProjectedJacobians
from laplora.predictive.cross_fitting import FOLDS, cross_fitted_predictive, rank_aligned
from laplora.predictive.kinds import (
    PREDICTIVES,
    TEMPERED,
    PredictiveName,
    fit_predictive_temperature,
    predictive_probs,
    predictive_spec,
)
from laplora.prior.validation import choose_by_validation
from training.calibration.outputs import SplitOutputs
from training.config import RunConfig
from training.workspace.files import write_json, write_tensors


@dataclass(frozen=True)
class Calibrated:
    """What an artifact records of its calibration split.

    Attributes:
        predictives: in the order of the report.
        scores: by predictive.
    """

    record: CalibrationRecord
    predictives: dict[PredictiveName, PredictiveRecord]
    recommended: RecommendedRecord
    scores: dict[PredictiveName, ReviewScores]


def calibrate(config: RunConfig, outputs: SplitOutputs) -> Calibrated:
    """Return every predictive's temperature, thresholds and conformal threshold, and which one to recommend.

    Served are parameters fitted on all calibration rows. Thresholds, label sets and the recommendation are set on what
    each row gets from a fit without it.
    """
    settings, split = config.calibration, outputs.split
    names = config.predictives.names
    labels = split.labels
    priors = _PriorsWithout(config, outputs)
    held_out = out_of_fold(config, outputs, priors)
    sureness = {name: held_out_sureness(config, outputs, name, priors) for name in names}
    thresholds = fit_thresholds(
        {str(name): predictive for name, predictive in held_out.items()},
        labels,
        split.label_mass,
        target_risk=settings.target_risk,
        guarantee=settings.guarantee,
        confidence=settings.confidence,
        sureness={str(name): sure for name, sure in sureness.items()},
    )
    map_probs = held_out["map"].probs
    records: dict[PredictiveName, PredictiveRecord] = {}
    scores: dict[PredictiveName, ReviewScores] = {}
    for name in names:
        spec, rule, predictive = PREDICTIVES[name], thresholds[name], held_out[name]
        records[name] = PredictiveRecord(
            members=spec.members,
            member_count=len(outputs.moments(name)[0]),
            covariance=spec.covariance,
            temperature=fit_temperature_of(outputs, name),
            nll=float(row_nll(predictive.probs, labels).mean()),
            thresholds=rule,
            conformal=fit_label_sets(settings.conformal, predictive.probs, labels, settings.coverage),
        )
        scores[name] = review_scores(rule, predictive, map_probs, labels, sureness[name])
    record = CalibrationRecord(
        split="calibration",
        rows=len(labels),
        folds=min(FOLDS, len(labels)),
        coverage=settings.coverage,
        conformal=settings.conformal,
        scores=SCORES,
    )
    return Calibrated(record, records, recommendation(config, held_out, labels), scores)


def out_of_fold(
    config: RunConfig, outputs: SplitOutputs, priors: _PriorsWithout | None = None
) -> dict[PredictiveName, PosteriorPredictive]:
    """Return every predictive of each calibration row, with prior and temperature fitted on the folds without it."""
    rows, priors = len(outputs.split.labels), priors or _PriorsWithout(config, outputs)
    return {
        name: cross_fitted_predictive(_fold_predictive(outputs, name, priors), rows, FOLDS, config.seed)
        for name in config.predictives.names
    }


def held_out_sureness(
    config: RunConfig, outputs: SplitOutputs, name: PredictiveName, priors: _PriorsWithout
) -> Sureness:
    """Return how sure a predictive is of each calibration row by the folds without it, on the served fit's scale."""
    predict, everything = _fold_predictive(outputs, name, priors), torch.arange(len(outputs.split.labels))

    def columns(predictive: PosteriorPredictive) -> torch.Tensor:
        sure = sureness_of(predictive)
        return torch.stack([sure.entropy, sure.confidence], 1)

    served = columns(predictive_of(outputs, name, fit_temperature_of(outputs, name)))
    aligned = rank_aligned(lambda fitted: columns(predict(fitted, everything)), served, FOLDS, config.seed)
    return Sureness(aligned[:, 0], aligned[:, 1])


def predictive_of(outputs: SplitOutputs, name: PredictiveName, temperature: float) -> PosteriorPredictive:
    """Return a predictive's moments on a split."""
    return predictive_probs(predictive_spec(name, temperature), *outputs.moments(name), outputs.split.class_mask)


def fit_temperature_of(outputs: SplitOutputs, name: PredictiveName) -> float:
    """Return the temperature of a predictive on all calibration rows; 1 where it has none."""
    if name not in TEMPERED:
        return 1.0
    return fit_predictive_temperature(*outputs.moments(name), outputs.split.labels, outputs.split.class_mask)


def recommendation(
    config: RunConfig, held_out: Mapping[PredictiveName, PosteriorPredictive], labels: torch.Tensor
) -> RecommendedRecord:
    """Return which predictive answers by default, compared on losses that were fitted without their row.

    Args:
        held_out: from ``out_of_fold``; labels: (rows,) int64.
    """
    # fast only stands in for laplace, in requests for it.
    names = tuple(name for name in config.predictives.names if name != "fast")
    losses: dict[str, torch.Tensor] = {name: row_nll(held_out[name].probs, labels) for name in names}
    by_data = recommend(losses, names, config.seed)
    wanted = config.predictives.serve
    if wanted == "auto":
        return RecommendedRecord(
            predictive=by_data.predictive, reason=by_data.reason, chosen_by="calibration", table=by_data.table
        )
    return RecommendedRecord(
        predictive=wanted,
        reason=f"{wanted}: set by the configuration; by the calibration split it would be {by_data.reason}",
        chosen_by="configuration",
        table=by_data.table,
    )


class _PriorsWithout:
    """The priors of the fitted adapters, chosen on some calibration rows only; each choice is made once."""

    def __init__(self, config: RunConfig, outputs: SplitOutputs) -> None:
        self._config, self._outputs = config, outputs
        self._moments: dict[tuple[int, ...], list[Prior]] = {}

    def __call__(self, rows: torch.Tensor, count: int) -> list[Prior]:
        """Return the priors of the first ``count`` fitted adapters."""
        outputs, laplace = self._outputs, self._config.laplace
        if laplace.prior != "validation":  # the calibration rows had no part in it
            return [f.prior for f in outputs.fitted[:count]]
        known = self._moments.setdefault(tuple(rows.tolist()), [])
        split = outputs.split
        for fitted in outputs.fitted[len(known) : count]:
            choice = choose_by_validation(
                fitted.posterior,
                take(fitted.projected, rows),
                split.labels[rows],
                split.class_mask[rows],
                laplace.granularity,
            )
            known.append(choice.prior)
        return known[:count]


def _fold_predictive(
    outputs: SplitOutputs, name: PredictiveName, priors: _PriorsWithout
) -> Callable[[torch.Tensor, torch.Tensor], PosteriorPredictive]:
    """Return the function that fits a predictive on some rows and answers others."""
    spec, split = PREDICTIVES[name], outputs.split
    fixed = None if spec.covariance else outputs.moments(name)

    def predictive(fit: torch.Tensor, answered: torch.Tensor) -> PosteriorPredictive:
        count = len(outputs.fitted) if spec.members == "checkpoints" else 1
        means, covariances = fixed or outputs.moments(name, priors(fit, count))
        temperature = 1.0
        if name in TEMPERED:
            of_fit = None if covariances is None else covariances[:, fit]
            temperature = fit_predictive_temperature(means[:, fit], of_fit, split.labels[fit], split.class_mask[fit])
        of_answered = None if covariances is None else covariances[:, answered]
        return predictive_probs(
            predictive_spec(name, temperature), means[:, answered], of_answered, split.class_mask[answered]
        )

    return predictive


def take(projected: ProjectedJacobians, rows: torch.Tensor) -> ProjectedJacobians:
    """Return some rows of projected Jacobians."""
    return ProjectedJacobians(projected.contrast_mean[rows], projected.kept[rows], projected.rest[rows])


def write_calibrated(folder: Path, calibrated: Calibrated) -> None:
    """Write what was calibrated into a run's folder."""
    write_tensors(folder / SCORES, score_tensors(calibrated.scores))
    write_json(
        folder / "calibrators.json",
        {
            "calibration": calibrated.record.model_dump(mode="json"),
            "predictives": {n: r.model_dump(mode="json") for n, r in calibrated.predictives.items()},
            "recommended": calibrated.recommended.model_dump(mode="json"),
        },
    )


def read_calibrated(folder: Path) -> dict[str, Any]:
    """Return the records that ``write_calibrated`` wrote, as fields of a manifest."""
    fields = json.loads((folder / "calibrators.json").read_text())
    return {
        "calibration": CalibrationRecord.model_validate(fields["calibration"]),
        "predictives": {n: PredictiveRecord.model_validate(r) for n, r in fields["predictives"].items()},
        "recommended": RecommendedRecord.model_validate(fields["recommended"]),
    }
