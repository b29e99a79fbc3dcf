"""How each alternative of the study is computed from what the model gave, and scored on held-out folds.

A temperature or prior precision is fitted on the calibration split. The loss that alternatives are compared by on that
split is cross-fitted: every row under parameters fitted without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.study.compute.posteriors import project_stored
from benchmarks.study.store import StoredSplit, Stores
from laplora.linearised import PosteriorPredictive, contrasts
from laplora.metrics.scores import row_nll
from laplora.posterior.base import Granularity, Posterior, Prior, ProjectedJacobians, block_precisions
from laplora.predictive.cross_fitting import cross_fitted_predictive
from laplora.predictive.kinds import Members, PredictiveSpec, fit_predictive_temperature, predictive_probs
from laplora.prior.search import PriorChoice
from laplora.prior.validation import choose_by_validation

#: Precisions at which an alternative is scored before the best is refined: even in the logarithm.
GRID = torch.logspace(-4, 8, 49, dtype=torch.float64)


@dataclass(frozen=True)
class Rows:
    """One split's logits as contrasts.

    Attributes:
        means: (members, rows, classes - 1) float64.
        class_mask: (rows, classes) bool; labels: (rows,) int64.
    """

    means: torch.Tensor
    class_mask: torch.Tensor
    labels: torch.Tensor

    def pick(self, rows: torch.Tensor) -> Rows:
        """Return some of the rows."""
        return Rows(self.means[:, rows], self.class_mask[rows], self.labels[rows])


@dataclass(frozen=True)
class Outcome:
    """What an alternative predicts on both splits.

    Attributes:
        calibration: its predictive on the calibration rows, each row's under parameters fitted without it.
        test: on the test rows, parameters fitted on all calibration rows.
        calibration_losses: (rows,) NLL of ``calibration``, nats.
        parameters: what was fitted.
    """

    calibration: PosteriorPredictive
    test: PosteriorPredictive
    calibration_losses: torch.Tensor
    parameters: dict[str, Any] = field(default_factory=dict)


def rows_of(logits: list[torch.Tensor], class_mask: torch.Tensor, labels: torch.Tensor) -> Rows:
    """Return a split from the logits (rows, classes) of one or more members."""
    transform = contrasts(class_mask.shape[1], torch.float64)
    return Rows(torch.stack([member.double() @ transform for member in logits]), class_mask, labels)


def stored_rows(split: StoredSplit) -> Rows:
    """Return a stored split under the trained adapter."""
    return rows_of([split.logits], split.class_mask, split.labels)


def point_outcome(calibration: Rows, test: Rows, *, tempered: bool) -> Outcome:
    """Return an average over members without posteriors: one member is MAP or temperature scaling."""

    def fit(rows: Rows) -> float:
        return fit_predictive_temperature(rows.means, None, rows.labels, rows.class_mask) if tempered else 1.0

    def predictive(rows: Rows, temperature: float) -> PosteriorPredictive:
        members: Members = "single" if len(rows.means) == 1 else "checkpoints"
        return predictive_probs(PredictiveSpec(members, False, temperature), rows.means, None, rows.class_mask)

    def held_out(fitted: torch.Tensor, answered: torch.Tensor) -> PosteriorPredictive:
        return predictive(calibration.pick(answered), fit(calibration.pick(fitted)))

    temperature = fit(calibration)
    crossed = cross_fitted_predictive(held_out, len(calibration.labels))
    return Outcome(
        crossed,
        predictive(test, temperature),
        row_nll(crossed.probs, calibration.labels),
        {"temperature": temperature} if tempered else {},
    )


@dataclass(frozen=True)
class Gaussians:
    """A posterior's view of both splits: their covariance under any prior."""

    posterior: Posterior
    calibration: ProjectedJacobians
    test: ProjectedJacobians

    @classmethod
    def of(cls, stores: Stores, posterior: Posterior) -> Gaussians:
        """Return the view of the stored calibration and test rows."""
        return cls(posterior, *(project_stored(stores, posterior, s) for s in (stores.calibration, stores.test)))

    def validated(self, calibration: Rows, granularity: Granularity = "scalar") -> PriorChoice:
        """Return the prior that the calibration rows choose."""
        labels, mask = calibration.labels, calibration.class_mask
        return choose_by_validation(self.posterior, self.calibration, labels, mask, granularity)

    def covariances(self, prior: Prior) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the contrast covariances of both splits, (rows, classes - 1, classes - 1)."""
        precisions = block_precisions(prior, self.posterior.blocks)
        return self.posterior.covariance(self.calibration, precisions), self.posterior.covariance(self.test, precisions)


def gaussian_predictive(rows: Rows, covariance: torch.Tensor, temperature: float = 1.0) -> PosteriorPredictive:
    """Return the posterior predictive of a split."""
    spec = PredictiveSpec("single", True, temperature)
    return predictive_probs(spec, rows.means, covariance[None], rows.class_mask)


def gaussian_outcome(
    gaussians: Gaussians, calibration: Rows, test: Rows, prior: Prior, *, tempered: bool = False
) -> Outcome:
    """Return the posterior predictive under a prior.

    The calibration rows' predictive chooses one common precision anew in every fold, from a grid. Under a prior chosen
    otherwise its losses are an upper bound.
    """
    blocks = gaussians.posterior.blocks
    covariances = [
        gaussians.posterior.covariance(
            gaussians.calibration, block_precisions(Prior("scalar", {"all": float(value)}), blocks)
        )
        for value in GRID
    ]
    scored = torch.stack([row_nll(gaussian_predictive(calibration, c).probs, calibration.labels) for c in covariances])

    def temperature_of(rows: Rows, covariance: torch.Tensor) -> float:
        if not tempered:
            return 1.0
        return fit_predictive_temperature(rows.means, covariance[None], rows.labels, rows.class_mask)

    def held_out(fitted: torch.Tensor, answered: torch.Tensor) -> PosteriorPredictive:
        covariance = covariances[int(scored[:, fitted].mean(1).argmin())]
        temperature = temperature_of(calibration.pick(fitted), covariance[fitted])
        return gaussian_predictive(calibration.pick(answered), covariance[answered], temperature)

    at_calibration, at_test = gaussians.covariances(prior)
    temperature = temperature_of(calibration, at_calibration)
    crossed = cross_fitted_predictive(held_out, len(calibration.labels))
    return Outcome(
        crossed,
        gaussian_predictive(test, at_test, temperature),
        row_nll(crossed.probs, calibration.labels),
        {"prior_precision": _brief(prior)} | ({"temperature": temperature} if tempered else {}),
    )


def fixed_prior_outcome(gaussians: Gaussians, calibration: Rows, test: Rows, prior: Prior) -> Outcome:
    """Return the posterior predictive under a prior that saw no calibration row: its losses need no folds."""
    at_calibration, at_test = gaussians.covariances(prior)
    on_calibration = gaussian_predictive(calibration, at_calibration)
    return Outcome(
        on_calibration,
        gaussian_predictive(test, at_test),
        row_nll(on_calibration.probs, calibration.labels),
        {"prior_precision": _brief(prior)},
    )


def _brief(prior: Prior) -> dict[str, float] | float:
    """Return the precisions; of many only the middle one and how many there are."""
    if len(prior.precision) <= 2:
        return {k: round(v, 6) for k, v in prior.precision.items()}
    logs = sorted(math.log(v) for v in prior.precision.values())
    return {"median": math.exp(logs[len(logs) // 2]), "count": float(len(logs))}
