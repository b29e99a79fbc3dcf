"""How each alternative of the study is computed from what the model gave, and scored on held-out folds.

A temperature or prior precision is fitted on the calibration split. The loss that alternatives are compared by on that
split is cross-fitted: every row under parameters fitted without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.study.compute.posteriors import project_stored
from benchmarks.study.store import StoredSplit, Stores
from laplora.linearised import PosteriorPredictive, contrasts
from laplora.metrics.scores import row_nll
from laplora.posterior.base import Granularity, Posterior, Prior, ProjectedJacobians, block_precisions
from laplora.predictive.cross_fitting import cross_fitted_predictive
from laplora.predictive.kinds import PredictiveSpec, fit_predictive_temperature, predictive_probs
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
        covariance: (1, rows, classes - 1, classes - 1), of one member with a posterior.
    """

    means: torch.Tensor
    class_mask: torch.Tensor
    labels: torch.Tensor
    covariance: torch.Tensor | None = None

    def pick(self, rows: torch.Tensor) -> Rows:
        """Return some of the rows."""
        covariance = None if self.covariance is None else self.covariance[:, rows]
        return Rows(self.means[:, rows], self.class_mask[rows], self.labels[rows], covariance)

    def predictive(self, temperature: float = 1.0) -> PosteriorPredictive:
        """Return the average over members and posterior."""
        spec = PredictiveSpec("single", self.covariance is not None, temperature)
        return predictive_probs(spec, self.means, self.covariance, self.class_mask)


@dataclass(frozen=True)
class Outcome:
    """What an alternative predicts on both splits.

    Attributes:
        calibration: its predictive on the calibration rows, each row's under parameters fitted without it.
        test: on the test rows, parameters fitted on all calibration rows.
        calibration_losses: (rows,) NLL of ``calibration``, nats.
    """

    calibration: PosteriorPredictive
    test: PosteriorPredictive
    calibration_losses: torch.Tensor


@dataclass(frozen=True)
class Gaussians:
    """A posterior's view of the calibration and the test rows: their covariance under any prior."""

    posterior: Posterior
    calibration: Rows
    test: Rows
    projected: tuple[ProjectedJacobians, ProjectedJacobians]

    @classmethod
    def of(cls, stores: Stores, posterior: Posterior) -> Gaussians:
        """Return the view of the stored rows."""
        calibration, test = (project_stored(stores, posterior, s) for s in (stores.calibration, stores.test))
        return cls(posterior, stored_rows(stores.calibration), stored_rows(stores.test), (calibration, test))

    def validated(self, granularity: Granularity = "scalar") -> PriorChoice:
        """Return the prior that the calibration rows choose."""
        labels, mask = self.calibration.labels, self.calibration.class_mask
        return choose_by_validation(self.posterior, self.projected[0], labels, mask, granularity)

    def calibration_under(self, prior: Prior) -> Rows:
        """Return the calibration rows with their covariance."""
        return replace(self.calibration, covariance=self._covariance(self.projected[0], prior))

    def test_under(self, prior: Prior) -> Rows:
        """Return the test rows with their covariance."""
        return replace(self.test, covariance=self._covariance(self.projected[1], prior))

    def _covariance(self, projected: ProjectedJacobians, prior: Prior) -> torch.Tensor:
        return self.posterior.covariance(projected, block_precisions(prior, self.posterior.blocks))[None]


def rows_of(logits: list[torch.Tensor], class_mask: torch.Tensor, labels: torch.Tensor) -> Rows:
    """Return a split from the logits (rows, classes) of one or more members."""
    transform = contrasts(class_mask.shape[1], torch.float64)
    return Rows(torch.stack([member.double() @ transform for member in logits]), class_mask, labels)


def stored_rows(split: StoredSplit) -> Rows:
    """Return a stored split under the trained adapter."""
    return rows_of([split.logits], split.class_mask, split.labels)


def point_outcome(calibration: Rows, test: Rows, *, tempered: bool) -> Outcome:
    """Return an average over members without posteriors: one member is MAP or temperature scaling."""
    return _outcome([calibration], calibration, test, tempered)


def gaussian_outcome(view: Gaussians, prior: Prior, *, tempered: bool = False) -> Outcome:
    """Return the posterior predictive under a prior.

    The calibration rows' predictive chooses one common precision anew in every fold, from a grid. Under a prior chosen
    otherwise its losses are an upper bound.
    """
    settings = [view.calibration_under(Prior("scalar", {"all": float(value)})) for value in GRID]
    return _outcome(settings, view.calibration_under(prior), view.test_under(prior), tempered)


def fixed_prior_outcome(view: Gaussians, prior: Prior) -> Outcome:
    """Return the posterior predictive under a prior that saw no calibration row: its losses need no folds."""
    calibration = view.calibration_under(prior).predictive()
    return Outcome(
        calibration, view.test_under(prior).predictive(), row_nll(calibration.probs, view.calibration.labels)
    )


def _outcome(settings: Sequence[Rows], calibration: Rows, test: Rows, tempered: bool) -> Outcome:
    """Return the predictives; ``settings``: the calibration rows under each setting that a fold chooses among."""
    labels = calibration.labels
    losses = torch.stack([row_nll(rows.predictive().probs, labels) for rows in settings])

    def temperature(rows: Rows) -> float:
        if not tempered:
            return 1.0
        return fit_predictive_temperature(rows.means, rows.labels, rows.class_mask)

    def held_out(fitted: torch.Tensor, answered: torch.Tensor) -> PosteriorPredictive:
        chosen = settings[int(losses[:, fitted].mean(1).argmin())]
        return chosen.pick(answered).predictive(temperature(chosen.pick(fitted)))

    crossed = cross_fitted_predictive(held_out, len(labels))
    return Outcome(crossed, test.predictive(temperature(calibration)), row_nll(crossed.probs, labels))
