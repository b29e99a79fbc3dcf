"""What is fitted on a draw of calibration rows: as it was, every row used twice, and as it is, cross-fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmarks.rules.promises.models import Fittable, Table
from laplora.decisions.conformal import fit_label_sets
from laplora.decisions.review import Sureness, accept_threshold, fit_thresholds, sureness_of
from laplora.decisions.thresholds import Guarantee, ModeThresholds, Score
from laplora.decisions.uncertainty import decompose, review_score
from laplora.linearised import PosteriorPredictive, entropy
from laplora.metrics.ranking import compare_auroc, error_auroc, tie_groups
from laplora.predictive.cross_fitting import cross_fitted_predictive, rank_aligned
from laplora.predictive.kinds import CONDITIONED

GUARANTEES: tuple[Guarantee, ...] = ("empirical", "upper_bound")

#: What the old choice of a score took for noise: fewer mistakes, and a lead of fewer standard errors.
_FEWEST_ERRORS, _BEYOND_NOISE = 5, 1.2816


@dataclass(frozen=True)
class Fitted:
    """One predictive as it would be served.

    Attributes:
        setting: fitted on all calibration rows.
        thresholds: flags and review rule; sets: the threshold of its label sets.
        score: what rows are reviewed by under one fit; None: by the review rule.
    """

    setting: int
    thresholds: ModeThresholds
    sets: float
    score: Score | None = None

    def scores(self, predictive: PosteriorPredictive, map_probs: torch.Tensor) -> torch.Tensor:
        """Return (rows,) what the review threshold is compared with, nats."""
        if self.score is None:
            return review_score(self.thresholds, probs=predictive.probs, map_probs=map_probs)
        if self.score == "epistemic":
            return decompose(predictive).epistemic
        return entropy(map_probs if self.score == "map_entropy" else predictive.probs)


def fit_cross_fitted(table: Table, rows: torch.Tensor, risk: float, level: float) -> dict[Guarantee, dict[str, Fitted]]:
    """Return every predictive as ``laplora.fitting.calibrate`` fits it on these rows, by guarantee and name."""
    held_out = {
        name: cross_fitted_predictive(
            lambda fit, answer, c=column: c.at(c.fit(rows[fit]), rows[answer]),  # type: ignore[misc]
            len(rows),
        )
        for name, column in table.columns.items()
    }
    sureness = {
        # As laplora.fitting.calibrate: a row that its own label has moved is no rank to compare with.
        name: sureness_of(held_out[name]) if name in CONDITIONED else _held_out_sureness(column, rows)
        for name, column in table.columns.items()
    }
    return {guarantee: _fitted(table, rows, held_out, risk, guarantee, level, sureness) for guarantee in GUARANTEES}


def _held_out_sureness(column: Fittable, rows: torch.Tensor) -> Sureness:
    def columns(fitted: torch.Tensor) -> torch.Tensor:
        sure = sureness_of(column.at(column.fit(fitted), rows))
        return torch.stack([sure.entropy, sure.confidence], 1)

    return Sureness(*rank_aligned(lambda fitted: columns(rows[fitted]), columns(rows)).T)


def fit_once(table: Table, rows: torch.Tensor, risk: float, level: float) -> dict[Guarantee, dict[str, Fitted]]:
    """Return every predictive with one fit of all its parts: settings, score, thresholds and sets on the same rows."""
    same = {name: column.at(column.fit(rows), rows) for name, column in table.columns.items()}
    labels, map_entropy = table.labels[rows], entropy(same["map"].probs)
    fitted = _fitted(table, rows, same, risk, "empirical", level)
    by_guarantee: dict[Guarantee, dict[str, Fitted]] = {guarantee: {} for guarantee in GUARANTEES}
    for name, one in fitted.items():
        errors = same[name].probs.argmax(1) != labels
        scores: dict[Score, torch.Tensor] = {"map_entropy": map_entropy}
        if name != "map":
            scores["total_entropy"] = entropy(same[name].probs)
        if bool((same[name].std > 0).any()):
            scores["epistemic"] = decompose(same[name]).epistemic
        score = _best_score(scores, errors)
        limits = {
            "empirical": _largest_within(scores[score], errors, risk),
            "upper_bound": accept_threshold(scores[score], errors, risk, guarantee="upper_bound"),
        }
        for guarantee in GUARANTEES:
            # Recorded as empirical under either: a label other than MAP's was accepted.
            rule = one.thresholds.review.model_copy(update={"threshold": limits[guarantee]})
            thresholds = one.thresholds.model_copy(update={"review": rule})
            by_guarantee[guarantee][name] = Fitted(one.setting, thresholds, one.sets, score)
    return by_guarantee


def _fitted(
    table: Table,
    rows: torch.Tensor,
    on_rows: dict[str, PosteriorPredictive],
    risk: float,
    guarantee: Guarantee,
    level: float,
    sureness: dict[str, Sureness] | None = None,
) -> dict[str, Fitted]:
    labels, mass = table.labels[rows], table.label_mass[rows]
    thresholds = fit_thresholds(on_rows, labels, mass, target_risk=risk, guarantee=guarantee, sureness=sureness)
    return {
        name: Fitted(column.fit(rows), thresholds[name], fit_label_sets("lac", on_rows[name].probs, labels, level))
        for name, column in table.columns.items()
    }


def _largest_within(scores: torch.Tensor, errors: torch.Tensor, risk: float) -> float | None:
    """Return the largest score whose calibration rows up to it err within the risk: the old empirical threshold."""
    values, group, counts = tie_groups(scores)
    wrong = torch.bincount(group, weights=errors.double(), minlength=len(values)).cumsum(0)
    fits = (wrong <= risk * counts.cumsum(0) + 1e-9).nonzero()[:, 0]
    return float(values[fits[-1]]) if len(fits) else None


def _best_score(scores: dict[Score, torch.Tensor], errors: torch.Tensor) -> Score:
    """Return the score that was reviewed by: the entropy, unless another one leads beyond noise on these mistakes."""
    first: Score = "total_entropy" if "total_entropy" in scores else "map_entropy"
    mistakes = int(errors.sum())
    if len(scores) == 1 or min(mistakes, len(errors) - mistakes) < _FEWEST_ERRORS:
        return first
    areas = {name: error_auroc(score, errors) or -math.inf for name, score in scores.items()}
    leads = {name: compare_auroc(score, scores[first], errors) for name, score in scores.items() if name != first}
    clear = [name for name, (lead, error) in leads.items() if lead > _BEYOND_NOISE * error and lead > 0]
    return max(clear, key=areas.__getitem__) if clear else first
