"""The exact-GGN Laplace posterior from Gram matrices, its prior chosen on the calibration rows.

With ``B = Lambda^{1/2} J`` over the training rows and prior variance s2, the covariance of a row's contrasts is
``s2 (J J^T - J B^T (B B^T + I / s2)^-1 B J^T)`` (Daxberger et al., arXiv 2106.14806, by Woodbury's identity).
One eigendecomposition of ``B B^T`` serves every prior variance and every calibration draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmarks.evidence.methods.base import Answer, Answers
from benchmarks.evidence.methods.gaussian_temperature import gaussian_temperature
from benchmarks.evidence.outputs import Kernel, Outputs
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.minimum import grid_minimum
from laplora.prior.search import predictive_nll

#: Searched precisions, and points of the grid over their logarithm: as ``laplora.prior.search``, half as many.
_LOWEST, _HIGHEST, _POINTS = 1e-6, 1e12, 37


@dataclass(frozen=True)
class Spectrum:
    """The training curvature's eigenvalues, and every other row's Jacobians in its eigenvectors.

    Attributes:
        values: (n,) float64, n = training rows x contrasts.
        projected: (pool + test, contrasts, n) float32, ``J B^T U``.
        own: (pool + test, contrasts, contrasts) float64, ``J J^T``.
    """

    values: torch.Tensor
    projected: torch.Tensor
    own: torch.Tensor

    def covariance(self, rows: torch.Tensor, precision: float) -> torch.Tensor:
        """Return (rows, contrasts, contrasts) float64 of places in the pool, or of test rows after all of the pool."""
        part = self.projected[rows].double()
        shrunk = part / (self.values + precision)
        return (self.own[rows] - shrunk @ part.mT) / precision


def spectrum(outputs: Outputs, subset: str) -> Spectrum:
    """Return the spectrum of a subset's kernel, computed once per unit."""
    key = f"spectrum {subset}"
    if key not in outputs.memo:
        outputs.memo[key] = _spectrum(outputs, outputs.kernel(subset))
    found = outputs.memo[key]
    assert isinstance(found, Spectrum)
    return found


def _spectrum(outputs: Outputs, kernel: Kernel) -> Spectrum:
    c, n = kernel.contrasts, kernel.train * kernel.contrasts
    roots = outputs.train.curvature_root
    # The symmetric root from both sides: rows, then columns, of the training block.
    half = (roots @ kernel.gram[:n, :n].double().view(-1, c, n)).view(n, n)
    curvature = (roots @ half.T.reshape(-1, c, n)).view(n, n)
    values, vectors = torch.linalg.eigh((curvature + curvature.T) / 2)
    mixed = (roots @ vectors.view(-1, c, n)).view(n, n).float()
    projected = (kernel.gram[:n, n:].T @ mixed).view(-1, c, n)
    own = torch.cat([kernel.diagonal[kernel.train :], kernel.test_diagonal]).double()
    return Spectrum(values.clamp_min(0), projected, own)


@dataclass(frozen=True)
class Fitted:
    """A draw's chosen precision, with the contrasts' covariances of its calibration rows and of the test rows."""

    precision: float
    calibration: torch.Tensor
    test: torch.Tensor


def fitted(outputs: Outputs, draw: int, subset: str) -> Fitted:
    """Return the posterior whose prior precision has the least NLL on the draw's rows; computed once."""
    key = f"laplace {subset} {draw}"
    if key not in outputs.memo:
        outputs.memo[key] = _fitted(outputs, draw, spectrum(outputs, subset))
    found = outputs.memo[key]
    assert isinstance(found, Fitted)
    return found


def _fitted(outputs: Outputs, draw: int, of: Spectrum) -> Fitted:
    rows, places = outputs.calibration(draw), outputs.draws[draw]
    mean = rows.mean

    def loss(log_precision: float) -> float:
        covariance = of.covariance(places, math.exp(log_precision))
        return predictive_nll(mean, covariance, rows.labels, rows.class_mask)

    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    precision = math.exp(grid_minimum(loss, low, high, points=_POINTS, tolerance=1e-2))
    test = torch.arange(len(outputs.pool), len(outputs.pool) + len(outputs.test))
    return Fitted(precision, of.covariance(places, precision), of.covariance(test, precision))


def laplace(subset: str) -> Answers:
    """Return the method that averages over the posterior of a subset."""

    def answer(outputs: Outputs, draw: int) -> Answer:
        found, test = fitted(outputs, draw, subset), outputs.test
        return Answer(posterior_predictive(test.mean, found.test, test.class_mask).probs)

    return answer


def laplace_temperature(subset: str) -> Answers:
    """Return the same with a temperature that divides every sampled logit, fitted after the prior."""

    def answer(outputs: Outputs, draw: int) -> Answer:
        found, rows, test = fitted(outputs, draw, subset), outputs.calibration(draw), outputs.test
        t = gaussian_temperature(rows.mean, found.calibration, rows.labels, rows.class_mask)
        return Answer(posterior_predictive(test.mean / t, found.test / t**2, test.class_mask).probs)

    return answer


def log_probs(subset: str, outputs: Outputs, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the posterior's log probabilities of the draw's rows and of the test rows, for maps on top of them."""
    found, rows, test = fitted(outputs, draw, subset), outputs.calibration(draw), outputs.test
    of_rows = posterior_predictive(rows.mean, found.calibration, rows.class_mask).probs
    of_test = posterior_predictive(test.mean, found.test, test.class_mask).probs
    tiny = torch.finfo(torch.float64).tiny
    return of_rows.clamp_min(tiny).log(), of_test.clamp_min(tiny).log()
