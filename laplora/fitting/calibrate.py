"""Calibrators, thresholds and the recommendation, all from the calibration split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from laplora.answers.explaining import nothing_accepted
from laplora.answers.review_scores import ReviewScores, review_scores, thresholds_at
from laplora.artifact.manifest import SCORES, CalibrationRecord, PredictiveRecord, RecommendedRecord
from laplora.decisions.conformal import fit_label_sets, fit_present_sets
from laplora.decisions.review import fit_thresholds
from laplora.decisions.temperature import fit_temperature
from laplora.errors import warn
from laplora.experts.base import Labelled
from laplora.fitting.projected import SplitOutputs
from laplora.linearised import PosteriorPredictive, contrast_logits, entropy, most_probable
from laplora.metrics.scores import row_nll
from laplora.pool.choice import choose
from laplora.posterior.base import Prior
from laplora.predictive.cross_fitting import cross_fitted_predictive, rank_aligned
from laplora.predictive.kinds import PredictiveName, has_jacobians
from laplora.predictive.probs import checked_mean, predictive_probs
from laplora.prior.search import choose_by_validation
from laplora.settings import CalibrationSettings, FitSettings

#: The names of calibration rows in an artifact.
HELD_OUT, OUT_OF_FOLD = "calibration", "out_of_fold"

#: A note on an answer's spread, if it is not that of the posterior over LoRA weights.
_SPREAD = {
    "laplace": "",
    "map": "No LoRA posterior is in this answer: it has no spread",
    "temperature": "No LoRA posterior is in this answer: it has no spread",
}
_OF_HEADS = "No LoRA posterior is in this answer: its spread is that of the heads"

#: The name of a predictive.
Name = TypeVar("Name", bound=str)
#: Gives the prior, chosen on some calibration rows only.
PriorOf = Callable[[torch.Tensor], Prior]
#: Fits a predictive on some calibration rows and answers others.
FoldPredictive = Callable[[torch.Tensor, torch.Tensor], PosteriorPredictive]


class Calibrated(BaseModel):
    """An artifact's record of its calibration."""

    calibration: CalibrationRecord
    predictives: dict[PredictiveName, PredictiveRecord]
    recommended: RecommendedRecord

    @property
    def temperatures(self) -> dict[PredictiveName, float]:
        """By predictive what divides its logits, 1 where nothing was fitted."""
        return {name: record.temperature for name, record in self.predictives.items()}


def recorded(
    wanted: CalibrationSettings,
    held_out: Mapping[Name, PosteriorPredictive],
    labels: torch.Tensor,
    together: int,
    split_name: str,
    *,
    entropies: Mapping[Name, torch.Tensor] | None = None,
    temperatures: Mapping[Name, float] | None = None,
    label_mass: torch.Tensor | None = None,
) -> tuple[dict[Name, PredictiveRecord], dict[Name, ReviewScores]]:
    """Return thresholds and label sets by what answers, and the rows' review scores.

    Args:
        held_out: by name, each row's under what was fitted without it.
        labels: (rows,) int64, or soft: the most probable one is then right; together: as of ``fit_thresholds``.
        entropies: as of ``fit_thresholds``. If none is given, they are those of ``held_out``: fits of folds compare,
            and a row that trained the served fit is no rank to compare with.
        temperatures: other than 1; label_mass: (rows,); None: 1.
    """
    fit_sets, right = fit_label_sets if together == 1 else fit_present_sets, most_probable(labels)
    ranks = {name: entropy(predictive.probs) for name, predictive in held_out.items()} | dict(entropies or {})
    thresholds = fit_thresholds(
        {str(name): predictive for name, predictive in held_out.items()},
        right,
        torch.ones(len(labels), dtype=torch.float64) if label_mass is None else label_mass,
        target_risk=wanted.highest_risk,
        guarantee=wanted.guarantee,
        confidence=wanted.confidence,
        entropies={str(name): column for name, column in ranks.items()},
        together=together,
        split=split_name,
    )
    at_map = next((predictive.probs for name, predictive in held_out.items() if name == "map"), None)
    records, scores = dict[Name, PredictiveRecord](), dict[Name, ReviewScores]()
    for name, predictive in held_out.items():
        rule = thresholds[name]
        records[name] = PredictiveRecord(
            temperature=(temperatures or {}).get(name, 1.0),
            nll=float(row_nll(predictive.probs, labels).mean()),
            thresholds=rule,
            conformal=fit_sets(wanted.score, predictive.probs, right, wanted.coverage),
        )
        scores[name] = review_scores(rule, predictive, at_map, right, ranks[name], together)
    return records, scores


def with_rules(
    wanted: CalibrationSettings,
    records: Mapping[Name, PredictiveRecord],
    scores: Mapping[Name, ReviewScores],
    labels: Sequence[str],
) -> dict[Name, PredictiveRecord]:
    """Return records whose review rule is what the settings ask for, by the names of labels if they do.

    Raises:
        ConfigError: as ``laplora.answers.review_scores.thresholds_at``.
    """
    aim = wanted.wanted
    if isinstance(aim, float):
        return dict(records)
    each = {name: thresholds_at(of.thresholds, scores[name], aim, labels) for name, of in records.items()}
    return {name: of.model_copy(update={"thresholds": each[name]}) for name, of in records.items()}


def calibration_record(wanted: CalibrationSettings, groups: torch.Tensor, split_name: str) -> CalibrationRecord:
    """Return what is recorded of calibration rows of these groups, (rows,) int64."""
    return CalibrationRecord(
        split=split_name,
        rows=len(groups),
        folds=min(wanted.folds, len(set(groups.tolist()))),
        coverage=wanted.coverage,
        conformal=wanted.score,
        scores=SCORES,
    )


def warn_of_nothing_accepted(calibrated: Calibrated, scores: Mapping[Any, ReviewScores]) -> None:
    """Warn where the predictive that answers by default accepts nothing at the target risk."""
    name = calibrated.recommended.predictive
    if nothing := nothing_accepted(name, calibrated.predictives[name].thresholds, scores[name]):
        warn(nothing.message)


def out_of_fold(
    settings: FitSettings, outputs: SplitOutputs, prior_of: PriorOf, names: Sequence[PredictiveName]
) -> dict[PredictiveName, PosteriorPredictive]:
    """Return predictives of each calibration row, with prior and temperature fitted on the folds without it."""
    rows, groups, folds = len(outputs.split.labels), outputs.split.row_groups, settings.calibration.folds
    return {
        name: cross_fitted_predictive(_fold_predictive(outputs, name, prior_of), rows, folds, settings.seed, groups)
        for name in names
    }


def held_out_entropy(
    settings: FitSettings, outputs: SplitOutputs, name: PredictiveName, prior_of: PriorOf
) -> torch.Tensor:
    """Return (rows,) entropies of a predictive by the folds without the row, on the served fit's scale, nats."""
    predict, everything = _fold_predictive(outputs, name, prior_of), torch.arange(len(outputs.split.labels))

    def of_fold(fitted: torch.Tensor) -> torch.Tensor:
        return entropy(predict(fitted, everything).probs)[:, None]

    served = entropy(predictive_of(outputs, name, fit_temperature_of(outputs, name)).probs)[:, None]
    folds, groups = settings.calibration.folds, outputs.split.row_groups
    return rank_aligned(of_fold, served, folds, settings.seed, groups)[:, 0]


def predictive_of(outputs: SplitOutputs, name: PredictiveName, temperature: float) -> PosteriorPredictive:
    """Return a predictive's moments on a split."""
    return predictive_probs(*outputs.moments(name), outputs.split.class_mask, temperature)


def fit_temperature_of(outputs: SplitOutputs, name: PredictiveName) -> float:
    """Return the temperature of a predictive on all calibration rows; 1 where it has none."""
    return _temperature(outputs, name, torch.arange(len(outputs.split.labels)))


def _temperature(outputs: SplitOutputs, name: PredictiveName, rows: torch.Tensor) -> float:
    if name != "temperature":
        return 1.0
    split = outputs.split
    mean, mask = checked_mean(split.projected.contrast_mean[rows], split.class_mask[rows])
    return fit_temperature(contrast_logits(mean), split.labels[rows], mask)


def recommended_by(
    wanted: str, losses: Mapping[str, torch.Tensor], costs: Mapping[str, float], labelled: Labelled
) -> RecommendedRecord:
    """Return which predictive answers by default: by ``laplora.pool.choice``, unless the configuration names one.

    Args:
        wanted: ``auto``, or the predictive's name.
        losses: by predictive that is to be chosen from (rows,) NLL of honest answers, nats; costs: in passes of the
            base; labelled: the rows.
    """
    by_data = choose(losses, costs, labelled.folds, labelled.groups)
    name = by_data.name if wanted == "auto" else wanted
    reason = f"{by_data.reason}. {_SPREAD.get(name, _OF_HEADS)}".removesuffix(". ")
    table = {str(one): {"nll": nll} for one, nll in by_data.nll.items()}
    if wanted == "auto":
        return RecommendedRecord(predictive=name, reason=reason, chosen_by="calibration", table=table)
    reason = f"{wanted}: set by the configuration; by the labelled rows it would be {by_data.name}. {reason}"
    return RecommendedRecord(predictive=name, reason=reason, chosen_by="configuration", table=table)


def prior_without(settings: FitSettings, outputs: SplitOutputs) -> PriorOf:
    """Return what chooses the prior on some calibration rows; each choice is made once."""
    fitted, split = outputs.fitted, outputs.split
    if settings.laplace.prior != "validation":  # the calibration rows had no part in it
        return lambda _rows: fitted.prior

    @cache
    def chosen(rows: tuple[int, ...]) -> Prior:
        places = torch.tensor(rows)
        return choose_by_validation(
            fitted.posterior,
            fitted.projected.take(places),
            split.labels[places],
            split.class_mask[places],
            settings.laplace.granularity,
        ).prior

    return lambda rows: chosen(tuple(rows.tolist()))


def _fold_predictive(outputs: SplitOutputs, name: PredictiveName, prior_of: PriorOf) -> FoldPredictive:
    """Return the function that fits a predictive on some rows and answers others."""
    split, fixed = outputs.split, None if has_jacobians(name) else outputs.moments(name)

    def predictive(fit: torch.Tensor, answered: torch.Tensor) -> PosteriorPredictive:
        mean, covariance = fixed or outputs.moments(name, prior_of(fit))
        spread = None if covariance is None else covariance[answered]
        return predictive_probs(mean[answered], spread, split.class_mask[answered], _temperature(outputs, name, fit))

    return predictive
